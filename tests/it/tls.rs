//! https for real, with certificate authorities made here.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use acusight_agent::api::client::Client;
use acusight_agent::api::http::Http;
use acusight_agent::clock::Clock;
use acusight_agent::config::ApiUrl;
use acusight_agent::error::Explain as _;
use acusight_agent::mock::MockCloud;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ServerConfig, ServerConnection};

use crate::support::{Bench, Run, block_on, write_private};

struct Secured {
    bench: Bench,
    ca: PathBuf,
}

/// A cloud whose certificate an authority of its own has signed, changed by `bend`.
fn secured(bend: impl FnOnce(&mut CertificateParams)) -> Secured {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key"))
        .expect("an authority");

    let config = server_config(&authority, bend);
    let bench = Bench::with(MockCloud::builder().tls(config).start().expect("starts"));
    let ca = bench.root().join("ca.pem");
    write_private(&ca, &authority.pem());
    Secured { bench, ca }
}

fn server_config(
    authority: &CertifiedIssuer<'_, KeyPair>,
    bend: impl FnOnce(&mut CertificateParams),
) -> ServerConfig {
    let mut server = CertificateParams::new(vec!["127.0.0.1".into()]).expect("parameters");
    bend(&mut server);
    let key = KeyPair::generate().expect("a key");
    let certificate = server.signed_by(&key, authority).expect("signed");

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a certificate")
}

impl Secured {
    fn provision(&self, args: &[&str]) -> Run {
        let token = self.bench.cloud.create_token("t", true);
        let mut command = self.bench.provision_command(&token, args);
        command.env("ACUSIGHT_RETRY_FOR", "0");
        Run::of(command)
    }

    fn trusting(&self) -> Run {
        self.provision(&["--ca-cert", self.ca.to_str().expect("a name")])
    }
}

#[test]
fn an_authority_of_ones_own_is_trusted_when_named() {
    let cloud = secured(|_| {});
    cloud.trusting().expect(0);
    assert_eq!(cloud.bench.cloud.devices().len(), 1);
    // And remembered by nobody: status needs it too.
    let mut status = cloud.bench.agent(&["status"]);
    status.env("ACUSIGHT_CA_CERT", &cloud.ca);
    Run::of(status).expect(0);
    cloud.bench.run(&["status"]).expect(6);
}

#[test]
fn the_systems_authorities_count_and_a_device_without_any_still_works() {
    let cloud = secured(|_| {});
    let token = cloud.bench.cloud.create_token("t", true);
    let provision = |args: &[&str], system: &Path| {
        let mut command = cloud.bench.provision_command(&token, args);
        command
            .env("ACUSIGHT_RETRY_FOR", "0")
            .env("SSL_CERT_FILE", system)
            .env("SSL_CERT_DIR", "/nonexistent");
        Run::of(command)
    };
    let nothing = cloud.bench.root().join("nothing.pem");
    write_private(&nothing, "");
    provision(&[], &nothing).expect(6);
    let named = ["--ca-cert", cloud.ca.to_str().expect("a name")];
    provision(&named, &nothing).expect(0);
    provision(&[], &cloud.ca).expect(0);
}

#[test]
fn an_authority_nobody_named_is_not_trusted() {
    let cloud = secured(|_| {});
    insta::assert_snapshot!(cloud.provision(&[]).error(), @"
    exit 6
    error: the server could not be asked: no secure connection to 127.0.0.1: its certificate is signed by nobody this machine trusts
    token: the token was not used
    hint: for your own server, name its certificate authority with --ca-cert; on a strange network, something may be answering in the server's place
    ");
    assert_eq!(cloud.bench.cloud.requests().len(), 0);
}

#[test]
fn a_certificate_for_another_name() {
    let cloud = secured(|server| {
        *server = CertificateParams::new(vec!["other.example".into()]).expect("parameters");
    });
    insta::assert_snapshot!(cloud.trusting().error(), @"
    exit 6
    error: the server could not be asked: no secure connection to 127.0.0.1: its certificate is for another name
    token: the token was not used
    hint: check --api-url; on a strange network, something may be answering in the server's place
    ");
}

#[test]
fn an_expired_certificate() {
    let cloud = secured(|server| {
        server.not_before = date_time_ymd(2020, 1, 1);
        server.not_after = date_time_ymd(2021, 1, 1);
    });
    insta::assert_snapshot!(cloud.trusting().error(), @"
    exit 6
    error: the server could not be asked: no secure connection to 127.0.0.1: its certificate has expired, says this machine's clock ([TIME])
    token: the token was not used
    hint: if that time is right, the server's certificate must be renewed; if not, set this machine's clock
    ");
}

#[test]
fn a_certificate_that_is_not_valid_yet_is_a_matter_of_the_clock() {
    let cloud = secured(|server| {
        server.not_before = date_time_ymd(2090, 1, 1);
        server.not_after = date_time_ymd(2091, 1, 1);
    });
    insta::assert_snapshot!(cloud.trusting().error(), @"
    exit 6
    error: the server could not be asked: no secure connection to 127.0.0.1: its certificate is not valid yet, says this machine's clock ([TIME])
    token: the token was not used
    hint: if that time is wrong, set the clock (timedatectl, or let it synchronise) and run the same command again
    ");
    // It may be set any moment: worth another try.
    let run = cloud.provision(&[
        "--ca-cert",
        cloud.ca.to_str().expect("a name"),
        "--retry-for",
        "3",
    ]);
    assert!(run.stderr.contains("trying again in"), "{}", run.stderr);
}

#[test]
fn https_spoken_to_a_server_of_plain_http() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let mut command = bench.provision_command(&token, &["--retry-for", "0"]);
    command.env(
        "ACUSIGHT_API_URL",
        bench.cloud.api_url().replace("http:", "https:"),
    );
    insta::assert_snapshot!(Run::of(command).error(), @"
    exit 6
    error: the server could not be asked: no secure connection to 127.0.0.1: received corrupt message of type InvalidContentType
    token: the token was not used
    hint: check that --api-url names an https server
    ");
}

#[test]
fn plain_http_spoken_to_a_server_of_https() {
    let cloud = secured(|_| {});
    let token = cloud.bench.cloud.create_token("t", true);
    let mut command = cloud.bench.provision_command(&token, &["--retry-for", "0"]);
    command.env(
        "ACUSIGHT_API_URL",
        cloud.bench.cloud.api_url().replace("https:", "http:"),
    );
    Run::of(command).expect(6);
}

/// What is known of the answer when the line corrupts it: nothing. It may hold a key.
#[test]
fn an_answer_that_arrives_corrupt_is_a_lost_answer() {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key"))
        .expect("an authority");
    let config = server_config(&authority, |_| {});
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let ca = scratch.path().join("ca.pem");
    write_private(&ca, &authority.pem());

    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}/api", listener.local_addr().expect("an address"));
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut tls = ServerConnection::new(Arc::new(config)).expect("a connection");
        while tls.is_handshaking() {
            tls.complete_io(&mut stream).expect("shaken hands");
        }
        let read = rustls::Stream::new(&mut tls, &mut stream).read(&mut [0; 4096]);
        assert!(read.expect("a request") > 0);
        // A record of application data that nobody can decrypt.
        stream
            .write_all(&[0x17, 3, 3, 0, 32])
            .and_then(|()| stream.write_all(&[0x5a; 32]))
            .expect("written");
    });
    let base = ApiUrl::parse(&url, false).expect("a good address");
    let http = Http::new(Some(&ca), &base, Clock::system()).expect("a client");
    let error = block_on(Client::new(http, base).probe()).expect_err("corrupt");
    server.join().expect("no panic");
    assert_eq!(error.id(), "connection_lost", "{error}");
    assert!(error.may_have_been_carried_out());
}
