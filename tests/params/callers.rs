//! What a modern caller's headers must say.

use serde_json::{Value, json};

use crate::harness::{call, tool_names};
use crate::{call_with, fine, mirrored, pairs, weir};

const REGION: &str = "Mcp-Param-Region";

#[tokio::test(flavor = "multi_thread")]
async fn headers_must_agree_with_the_body_before_anything_is_done() {
    let up = fine().await;
    let weir = weir(&up).await;
    let body = json!({"region": "grün", "to": {"account": 42}, "note": "x"});
    let region = (REGION, "=?base64?Z3LDvG4=?=");
    let account = ("mcp-param-account", "42.0");
    let refused: [(&str, &[(&str, &str)]); 8] = [
        ("Region is missing", &[account]),
        ("Account is missing", &[region]),
        ("Region differs", &[(REGION, "blau"), account]),
        ("Region has a bad base64", &[(REGION, "=?base64?Z3LDvG4?="), account]),
        ("Region differs", &[(REGION, "=?Base64?Z3LDvG4=?="), account]),
        ("Account differs", &[region, ("mcp-param-account", "42.5")]),
        ("Region stands twice", &[region, region, account]),
        ("Now has nothing", &[region, account, ("mcp-param-now", "true")]),
    ];
    for (why, with) in refused {
        let got = call_with(&weir, "up__pay", body.clone(), with).await;
        let error = &got.answer()["error"];
        assert_eq!((got.status, &error["code"]), (400, &json!(-32020)), "{why}: {}", got.body);
        assert_eq!(
            (&got.answer()["id"], &error["data"]["reason"]),
            (&json!(1), &json!("header_mismatch"))
        );
        assert!(error["message"].as_str().unwrap().contains(why), "{why}: {error}");
    }
    assert_eq!(up.arrived("pay"), 0);
    let got = call_with(&weir, "up__pay", body, &[region, account]).await;
    assert_eq!((got.status, &got.answer()["error"]), (200, &Value::Null), "{}", got.body);
    // As the body says it, not as the caller wrote it.
    let wanted = pairs(&[("region", "=?base64?Z3LDvG4=?="), ("account", "42")]);
    assert_eq!(mirrored(&up, "pay"), [wanted]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_mirrored_where_nothing_is_said() {
    let up = fine().await;
    let weir = weir(&up).await;
    for arguments in
        [json!({}), json!({"region": null, "to": {}}), json!({"to": null, "note": "x"})]
    {
        let got = call_with(&weir, "up__pay", arguments, &[]).await;
        assert_eq!(got.answer()["result"]["resultType"], "complete", "{}", got.body);
    }
    assert_eq!(mirrored(&up, "pay"), vec![pairs(&[]); 3]);
    // A tool that is not there has its own error, whatever the headers say.
    let got = call_with(&weir, "up__none", json!({}), &[(REGION, "=?base64?%?=")]).await;
    assert_eq!((got.status, &got.answer()["error"]["code"]), (200, &json!(-32602)), "{}", got.body);
    // An integer that two readers could take for two.
    let got =
        call_with(&weir, "up__pay", json!({"to": {"account": 9_007_199_254_740_992_i64}}), &[])
            .await;
    assert_eq!(got.answer()["error"]["code"], -32602, "{}", got.body);
    assert_eq!(got.answer()["error"]["data"]["reason"], "invalid_params");
    assert_eq!(up.arrived("pay"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_headers_are_handed_on_to_who_may_know_them() {
    let up = fine().await;
    let old = crate::harness::scripted::Scripted::fine(&["plain"]).await;
    let toml = up.section("up", "") + &old.section("old", "");
    let weir = crate::harness::Weir::start("builtin = false", &toml);
    weir.ready(&["up", "old"]).await;
    let with = [("Mcp-Param-Tenant", "a b"), ("mcp-param-odd", "=?base64?%?="), ("x-else", "1")];
    for name in ["up__plain", "old__plain"] {
        let got = call_with(&weir, name, json!({}), &with).await;
        assert_eq!(got.answer()["error"], Value::Null, "{}", got.body);
    }
    assert_eq!(mirrored(&up, "plain"), [pairs(&[("tenant", "a b"), ("odd", "=?base64?%?=")])]);
    assert_eq!(mirrored(&old, "plain"), [pairs(&[])]);
    assert!(up.arrivals().iter().all(|a| !a.headers.contains_key("x-else")));
    assert_eq!(tool_names(&weir.url, None).await, ["up__pay", "up__plain", "old__plain"]);
    assert_eq!(call(&weir.url, "up__plain", json!({})).await["error"], Value::Null);
}
