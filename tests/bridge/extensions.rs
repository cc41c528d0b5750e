//! Extensions on the way: skills, and pages of apps.

use serde_json::{Value, json};

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, modern, post, reason};
use crate::{Old, capabilities_of, modern_call, pages, weir};

const SKILLS: &str = "io.modelcontextprotocol/skills";
const APPS: &str = "io.modelcontextprotocol/ui";
const DECLARED: &str = "io.modelcontextprotocol/clientCapabilities";

fn skill(root: &str, resources: Value) -> Value {
    let name = root.rsplit('/').next().unwrap();
    json!({"uri": format!("skill://{root}/SKILL.md"), "resources": resources,
        "frontmatter": {"name": name, "description": "skill://stays"}})
}

fn refunds() -> Value {
    let files = ["SKILL.md", "examples/email.md"].map(|file| {
        json!({"uri": format!("skill://billing/refunds/{file}"), "digest": "sha256:00", "size": 1})
    });
    skill("billing/refunds", json!(files))
}

/// An upstream of the newest revision with two skills on two pages.
async fn skilled(settings: Value) -> Scripted {
    Scripted::start(&[], move |a| {
        let params = &a.message["params"];
        let unknown = |code: i32| {
            let error = json!({"code": code, "message": "no"});
            Some(Reply::Json(json!({"jsonrpc": "2.0", "id": a.message["id"], "error": error}).to_string()))
        };
        let mut result = match a.method() {
            "server/discover" => json!({"supportedVersions": ["2026-07-28"],
                "capabilities": {"resources": {}, "extensions": {SKILLS: settings}}}),
            "resources/list" => json!({"resources": []}),
            "resources/templates/list" => json!({"resourceTemplates": []}),
            "skills/list" if params["cursor"] == "2" => json!({"skills": [refunds()]}),
            "skills/list" => json!({"skills": [skill("daily", json!("dynamic"))], "nextCursor": "2"}),
            "skills/get" if params["uri"] == refunds()["uri"] => json!({"skill": refunds()}),
            "skills/get" => return unknown(-32602),
            "resources/directory/read" => json!({"resources": [
                {"uri": format!("{}/email.md", params["uri"].as_str().unwrap()), "name": "email.md"}]}),
            "resources/read" => json!({"contents": [{"uri": params["uri"], "text": "# skill://stays"}]}),
            _ => return None,
        };
        result["resultType"] = json!("complete");
        if a.method() != "resources/directory/read" {
            result["ttlMs"] = json!(7);
            result["cacheScope"] = json!("private");
        }
        Some(Reply::Json(a.result(&result)))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn skills_carry_their_upstream_and_lead_back_to_it() {
    let (crm, erp) = (skilled(json!({"directoryRead": true})).await, skilled(json!({})).await);
    let plain = Scripted::fine(&["a"]).await;
    let toml = crm.section("crm", "")
        + &erp.section("erp", "deny = [\"*daily*\"]")
        + &plain.section("plain", "");
    let weir = Weir::start("page_size = 2", &toml);
    weir.ready(&["crm", "erp", "plain"]).await;
    let ask =
        async |method: &str, params: Value| modern(&weir.url, None, method, params).await.answer();
    let told = ask("server/discover", json!({})).await;
    assert_eq!(
        told["result"]["capabilities"]["extensions"],
        json!({SKILLS: {"directoryRead": true}})
    );

    // Merged, filtered, on pages of ours.
    let first = ask("skills/list", json!({})).await["result"].clone();
    let public = |upstream: &str, skill: Value| -> Value {
        let text = skill.to_string().replace("skill://", &format!("skill://{upstream}/"));
        serde_json::from_str(&text.replace(&format!("skill://{upstream}/stays"), "skill://stays"))
            .unwrap()
    };
    let daily = public("crm", skill("daily", json!("dynamic")));
    assert_eq!(first["skills"], json!([daily, public("crm", refunds())]), "{first}");
    assert_eq!(
        (&first["resultType"], &first["cacheScope"]),
        (&json!("complete"), &json!("private"))
    );
    let rest = ask("skills/list", json!({"cursor": first["nextCursor"]})).await["result"].clone();
    assert_eq!(rest["skills"], json!([public("erp", refunds())]), "{rest}");
    assert!(rest.get("nextCursor").is_none(), "{rest}");

    let uri = "skill://erp/billing/refunds/SKILL.md";
    let got = ask("skills/get", json!({"uri": uri})).await["result"].clone();
    assert_eq!((&got["skill"], &got["ttlMs"]), (&public("erp", refunds()), &json!(7)));
    let read = ask("resources/read", json!({"uri": uri})).await["result"].clone();
    assert_eq!(read["contents"], json!([{"uri": uri, "text": "# skill://stays"}]));
    let directory = "skill://crm/billing/refunds/examples";
    let listed = ask("resources/directory/read", json!({"uri": directory})).await["result"].clone();
    assert_eq!(listed["resources"][0]["uri"], format!("{directory}/email.md"), "{listed}");
    assert!(listed.get("ttlMs").is_none(), "{listed}");
    assert_eq!((crm.asked("skills/get"), erp.asked("skills/get")), (0, 1));

    // One the upstream does not serve, one that is filtered, one whose upstream has none of it.
    let lost = ask("skills/get", json!({"uri": "skill://crm/none/SKILL.md"})).await;
    assert_eq!((&lost["error"]["code"], reason(&lost)), (&json!(-32602), ""));
    for (method, uri) in [
        ("skills/get", "skill://erp/daily/SKILL.md"),
        ("skills/get", "skill://plain/x/SKILL.md"),
        ("resources/directory/read", "skill://erp/billing"),
    ] {
        let refused = ask(method, json!({"uri": uri})).await;
        assert_eq!((&refused["error"]["code"], reason(&refused)), (&json!(-32602), "unknown_name"));
    }
    assert_eq!(erp.asked("resources/directory/read"), 0);

    // Old revisions have no such extension; what they are told of is nothing of it.
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "o", "version": "1"}}});
    let welcome = post(&weir.url, &[], hello.to_string()).await.answer();
    assert_eq!(welcome["result"]["capabilities"].get("extensions"), None, "{welcome}");
    let old = Old::open(&weir.url, None, "2025-11-25", &json!({})).await;
    let list = json!({"jsonrpc": "2.0", "id": 2, "method": "skills/list"});
    assert_eq!(old.post(&list).await.answer()["error"]["code"], -32601);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_upstream_that_has_skills_there_is_no_such_method() {
    let up = Scripted::fine(&["a"]).await;
    let weir = weir(&up, "").await;
    for method in ["skills/list", "skills/get", "resources/directory/read"] {
        let got = modern(&weir.url, None, method, json!({"uri": "skill://up/x"})).await;
        assert_eq!(got.status, 404, "{method}");
        assert_eq!(got.answer()["error"]["code"], -32601, "{method}");
    }
    assert_eq!(up.asked("skills/list"), 0, "it declared none");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_apps_are_found_in_every_pairing() {
    for revision in ["2025-06-18", "2026-07-28"] {
        let modern_up = revision == "2026-07-28";
        let mut show = tool("show", true);
        show["_meta"] = json!({"ui": {"resourceUri": "ui://dash/main", "visibility": ["model", "app"]}, "ui/resourceUri": "ui://dash/main"});
        let up = Scripted::start(&[], move |a| {
            let capabilities = json!({"tools": {}, "resources": {}, "extensions": {APPS: {}}});
            let mut result = match a.method() {
                "server/discover" if modern_up => json!({"supportedVersions": [revision], "capabilities": capabilities}),
                "initialize" => json!({"protocolVersion": revision, "capabilities": capabilities,
                    "serverInfo": {"name": "s", "version": "1"}}),
                "tools/list" => json!({"tools": [show]}),
                "resources/list" => json!({"resources": [{"uri": "ui://dash/main", "name": "m"}]}),
                "resources/templates/list" => json!({"resourceTemplates": []}),
                "resources/read" => json!({"contents": [{"uri": a.message["params"]["uri"], "text": "<p>",
                    "_meta": {"ui": {"csp": {"connectDomains": ["https://x.example"]}}}}]}),
                "tools/call" => json!({"content": [{"type": "resource", "resource": {"uri": "ui://dash/main", "text": "ui://stays"}}],
                    "_meta": {"ui": {"resourceUri": "ui://dash/main"}}}),
                _ => return None,
            };
            if modern_up {
                result["resultType"] = json!("complete");
                result["ttlMs"] = json!(0);
                result["cacheScope"] = json!("private");
            }
            Some(Reply::Json(a.result(&result)))
        })
        .await;
        let weir = weir(&up, "").await;
        let page = "ui://up/dash/main";
        let old = Old::open(&weir.url, None, "2025-06-18", &pages()).await;
        let old_ask = async |method: &str, params: Value| {
            let request =
                json!({"jsonrpc": "2.0", "id": method, "method": method, "params": params});
            old.post(&request).await.answer()["result"].clone()
        };
        let new_ask = async |method: &str, params: Value| {
            modern(&weir.url, None, method, params).await.answer()["result"].clone()
        };
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "o", "version": "1"}}});
        let welcome = post(&weir.url, &[], hello.to_string()).await.answer()["result"].clone();
        for told in [welcome, new_ask("server/discover", json!({})).await] {
            assert_eq!(told["capabilities"]["extensions"], json!({APPS: {}}), "{told}");
        }
        let (tools, none) = (json!({}), json!({}));
        for list in [old_ask("tools/list", tools).await, new_ask("tools/list", none).await] {
            let all = list["tools"].as_array().unwrap();
            let meta = &all.iter().find(|t| t["name"] == "up__show").unwrap()["_meta"];
            assert_eq!(
                (&meta["ui"]["resourceUri"], &meta["ui/resourceUri"]),
                (&json!(page), &json!(page))
            );
            assert_eq!(meta["ui"]["visibility"], json!(["model", "app"]));
        }
        let params = || json!({"uri": page});
        for read in
            [old_ask("resources/read", params()).await, new_ask("resources/read", params()).await]
        {
            let content = &read["contents"][0];
            assert_eq!(
                (&content["uri"], &content["text"]),
                (&json!(page), &json!("<p>")),
                "{read}"
            );
            assert_eq!(
                content["_meta"]["ui"]["csp"]["connectDomains"],
                json!(["https://x.example"])
            );
        }
        let by_old = old.call("up__show", json!({}), |_| None).await.last().unwrap().clone();
        let by_new = modern_call(&weir.url, None, &pages(), "up__show", json!({})).await;
        for called in [by_old, by_new] {
            let resource = &called["result"]["content"][0]["resource"];
            assert_eq!((&resource["uri"], &resource["text"]), (&json!(page), &json!("ui://stays")));
            assert_eq!(called["result"]["_meta"]["ui"]["resourceUri"], page, "{called}");
        }
        // The upstream knows who shows pages: whoever asks for the lists, and these two callers.
        let arrivals = up.arrivals();
        if modern_up {
            let said = |method: &str| -> Vec<Value> {
                let of = arrivals.iter().filter(|a| a.method() == method);
                of.map(|a| a.message["params"]["_meta"][DECLARED].clone()).collect()
            };
            assert_eq!(said("tools/call"), [pages(), pages()]);
            assert_eq!(said("tools/list")[0], pages());
        } else {
            // One conversation for all, among them those who show no pages.
            assert_eq!(capabilities_of(&arrivals), [json!({})]);
        }
    }
}
