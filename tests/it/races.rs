//! Many at once.

use std::sync::Barrier;

use acusight_agent::api::client::Client;
use acusight_agent::api::{DeviceInfo, ProvisionRequest};
use acusight_agent::mock::{Fault, MockCloud, Moment, Route};
use uuid::Uuid;

use crate::support::{Bench, Run, Running, block_on, http_for};

#[test]
fn of_a_hundred_devices_racing_for_a_single_use_token_exactly_one_wins() {
    let cloud = MockCloud::start();
    let token = cloud.create_token("single", true);
    let start = Barrier::new(100);
    let outcomes: Vec<u16> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..100)
            .map(|number| {
                let (token, start, url) = (&token, &start, cloud.api_url());
                scope.spawn(move || {
                    let (http, base) = http_for(&url);
                    let client = Client::new(http, base);
                    let request = ProvisionRequest {
                        token: token.clone(),
                        device_info: DeviceInfo {
                            device_id: format!("racer-{number}"),
                            ..DeviceInfo::default()
                        },
                    };
                    start.wait();
                    match block_on(client.provision(&request, Uuid::new_v4())) {
                        Ok(_) => 201,
                        Err(error) => error.refusal().expect("an answer of the API").0,
                    }
                })
            })
            .collect();
        racers
            .into_iter()
            .map(|racer| racer.join().expect("no panic"))
            .collect()
    });
    let won = outcomes.iter().filter(|status| **status == 201).count();
    let lost = outcomes.iter().filter(|status| **status == 401).count();
    assert_eq!((won, lost), (1, 99));
    assert_eq!(cloud.devices().len(), 1);
}

#[test]
fn of_two_runs_on_one_machine_one_works_and_the_other_says_why_not() {
    let bench = Bench::new();
    let token = bench.cloud.create_token("t", true);
    let hang = Fault::Hang {
        moment: Moment::BeforeCommit,
    };
    bench.cloud.inject(hang.on(Route::Provision).times(1));
    let first = Running::start(bench.provision_command(&token, &[]));
    bench.wait_for_call(Route::Provision);

    let second = Run::of(bench.provision_command(&token, &[]));
    insta::assert_snapshot!(second.error(), @"
    exit 14
    error: another acusight-agent is provisioning this device right now
    hint: wait for it to finish, then look at `acusight-agent status`
    ");

    first.signal(rustix::process::Signal::INT);
    first.finish().expect(130);
    bench.provision(&token).expect(0);
    assert_eq!(bench.cloud.devices().len(), 1);
}
