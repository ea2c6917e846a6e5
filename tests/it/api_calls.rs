//! The client's calls against the mock: every call of the API, in good weather.

use acusight_agent::api::client::Client;
use acusight_agent::api::{
    Action, Checkin, CreateToken, DeviceInfo, Health, Lifetime, Metrics, ProvisionRequest,
};
use acusight_agent::mock::{ADMIN_TOKEN, MockCloud};
use acusight_agent::secret::{AdminToken, DeviceKey, EdgeKey};
use serde_json::json;
use uuid::Uuid;

use crate::support::{block_on, http_for};

#[test]
fn every_call_once_around() {
    let cloud = MockCloud::start();
    let (http, base) = http_for(&cloud.api_url());
    let client = Client::new(http, base);
    let admin = AdminToken::parse(ADMIN_TOKEN).expect("a token");
    block_on(async {
        client.probe().await.expect("the API answers");
        let request = CreateToken {
            name: "Line 1".into(),
            expires_in_days: Lifetime::Never,
            single_use: true,
        };
        let created = client
            .create_token(&admin, &request)
            .await
            .expect("created");
        assert_eq!(created.expires_at, None);

        let info = DeviceInfo {
            device_id: "d".into(),
            name: Some("edge-1".into()),
            ..DeviceInfo::default()
        };
        let request = ProvisionRequest {
            token: created.token,
            device_info: info.clone(),
        };
        let issued = client
            .provision(&request, Uuid::new_v4())
            .await
            .expect("provisioned");
        assert_eq!(cloud.devices()[0].info, info);
        let edge_key = EdgeKey::parse(issued.edge_key.expect("a key").expose()).expect("a word");
        assert!(cloud.issued_edge_key("d", &edge_key));

        let tokens = client.list_tokens(&admin).await.expect("listed");
        assert_eq!((tokens.tokens.len(), tokens.not_shown), (1, 0));
        assert_eq!(tokens.tokens[0].use_count, 1);
        let id = created.id.parse().expect("a UUID");
        client.revoke_token(&admin, id).await.expect("revoked");

        let key = DeviceKey::parse(issued.api_key.expose()).expect("a key");
        let device = client.device_self(&key).await.expect("known");
        assert_eq!(
            (device.device_id.as_str(), device.status.as_str()),
            ("d", "approved")
        );
        assert_eq!(device.name.as_deref(), Some("edge-1"));

        let action =
            json!({"id": 7, "type": "deploy_model", "model_id": "m", "nested": {"a": [1]}});
        let action: Action = serde_json::from_value(action).expect("an action");
        assert!(cloud.queue_action("d", action.clone()));
        let checkin = Checkin {
            status: Health::Degraded,
            metrics: Metrics {
                cpu_usage: Some(12.5),
                uptime: Some(60),
                ..Metrics::default()
            },
        };
        let reply = client.checkin(&key, &checkin).await.expect("checked in");
        assert_eq!(reply.actions, [action]);
        // What was not measured is left out, not zero.
        let seen = cloud.devices()[0].last_checkin.clone();
        let expected = json!({"status": "degraded", "metrics": {"cpu_usage": 12.5, "uptime": 60}});
        assert_eq!(seen, Some(expected));
    });
}

#[test]
fn one_connection_serves_many_calls() {
    let cloud = MockCloud::start();
    let (http, base) = http_for(&cloud.api_url());
    let client = Client::new(http, base);
    block_on(async {
        for _ in 0..20 {
            client.probe().await.expect("the API answers");
        }
    });
    assert_eq!(cloud.counters().requests(), 20);
    assert_eq!(cloud.counters().connections(), 1);
}
