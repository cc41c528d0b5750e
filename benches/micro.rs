//! What single steps of a call, a list and a reload take, by themselves.
//!
//! `cargo bench --bench micro` for all, `cargo bench --bench micro -- scan` for some; criterion
//! compares with the run before. `--profile count` is built sooner and says nearly the same.
#![allow(missing_docs, clippy::unwrap_used)]

use std::future::ready;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Value, json};
use weirkeeper::call::Form;
use weirkeeper::catalog::freshness::Freshness;
use weirkeeper::catalog::merge::{Catalog, Part};
use weirkeeper::catalog::slice::{About, Slice, SliceBuilder};
use weirkeeper::catalog::view::View;
use weirkeeper::config::{self, Config, RateConfig};
use weirkeeper::guard::{Ask, Deadline, Done, Guard};
use weirkeeper::protocol::address::Parsed;
use weirkeeper::protocol::exchange::Exchange;
use weirkeeper::protocol::message::{Frame, Kind, response};
use weirkeeper::protocol::meta::{Members, RequestMeta};
use weirkeeper::protocol::method::{self, ListKind};
use weirkeeper::protocol::revision::Revision;

/// Upstreams of the catalogs.
const UPSTREAMS: usize = 6;
/// More than a page of the shipped size, so that a list is one page.
const PAGE: usize = 20_000;

fn request(arguments: &Value) -> Bytes {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
        "progressToken": 17,
    });
    let params = json!({"name": "crm__echo", "arguments": arguments, "_meta": meta});
    json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}).to_string().into()
}

fn answer(size: usize) -> Bytes {
    let row = json!({"id": 1.50, "name": "Ada \"L.\" Lovelace", "tags": ["a", "b"], "open": true});
    let rows = vec![row.clone(); size.div_ceil(row.to_string().len() + 1)];
    let text =
        json!({"content": [{"type": "text", "text": Value::from(rows.clone()).to_string()}]});
    let text =
        if size < 1 << 10 { text } else { json!({"content": [], "structuredContent": rows}) };
    response(b"7", Kind::Result, text.to_string().as_bytes())
}

fn envelope(c: &mut Criterion) {
    let call = request(&json!({"text": "t".repeat(128)}));
    let messages = [("call", call), ("64KiB", answer(64 << 10)), ("1MiB", answer(1 << 20))];
    let mut group = c.benchmark_group("scan");
    for (name, message) in &messages {
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(*name, |b| {
            b.iter(|| Frame::scan(black_box(message.clone())).unwrap());
        });
    }
    group.finish();
    // What it would cost to understand all of it.
    let mut group = c.benchmark_group("read and write");
    for (name, message) in &messages {
        group.throughput(Throughput::Bytes(message.len() as u64));
        group.bench_function(*name, |b| {
            b.iter(|| {
                let value: Value = serde_json::from_slice(black_box(message)).unwrap();
                serde_json::to_vec(&value).unwrap()
            });
        });
    }
    group.finish();
}

fn request_steps(c: &mut Criterion) {
    let message = request(&json!({"text": "t".repeat(128)}));
    let frame = Frame::scan(message).unwrap();
    let params = frame.params().unwrap();
    let method = method::find("tools/call", Revision::LATEST).unwrap();
    let mut group = c.benchmark_group("request");
    group.bench_function("params and _meta", |b| {
        b.iter(|| {
            let members = Members::read(black_box(&params)).unwrap();
            RequestMeta::read(members.get("_meta").unwrap().get().as_bytes()).unwrap()
        });
    });
    group.bench_function("address", |b| {
        b.iter(|| Parsed::read(method, Some(black_box(&params))).unwrap());
    });
    let parsed = Parsed::read(method, Some(&params)).unwrap();
    group.bench_function("exchange", |b| {
        b.iter(|| {
            let meta =
                br#"{"progressToken":99,"io.modelcontextprotocol/protocolVersion":"2026-07-28"}"#;
            let exchange =
                Exchange { native: "echo", id: b"99", meta, unknown: &[], more: &[], edit: None };
            exchange.apply(black_box(&frame), &parsed)
        });
    });
    let answer = Frame::scan(answer(64 << 10)).unwrap();
    group.bench_function("id of a 64 KiB answer", |b| {
        b.iter(|| answer.with_id(black_box(b"\"caller\"")));
    });
    group.finish();
}

fn page(count: usize, mark: &str) -> Bytes {
    let tools: Vec<Value> = (0..count)
        .map(|n| {
            json!({"name": format!("tool_{n:05}"), "description": mark.repeat(160), "inputSchema": {
                "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}})
        })
        .collect();
    json!({"tools": tools}).to_string().into()
}

fn tools(page: &Bytes) -> Arc<Slice> {
    let about = About {
        revision: Revision::R2025_11_25,
        capabilities: Bytes::from_static(br#"{"tools":{}}"#),
        server_info: None,
        instructions: None,
        sse: false,
    };
    let mut builder = SliceBuilder::new(about, 10_000);
    builder.add_page(ListKind::Tools, page).unwrap();
    Arc::new(builder.finish())
}

fn configuration() -> Config {
    let sections = (0..UPSTREAMS).map(|n| {
        format!(
            "[upstreams.up{n}]\nurl = \"http://127.0.0.1:9/mcp\"\nconcurrency = {{ max = 16 }}\n"
        )
    });
    let view = "[views.team]\nupstreams = [\"up0\", \"up1\", \"up2\", \"up3\", \"up4\", \"up5\"]\n\
        deny = [\"*__delete_*\"]\n";
    let text = sections.collect::<String>() + view;
    config::parse(&text, "upstreams.toml", &|_| None, &|path| std::fs::read_to_string(path))
        .unwrap()
}

struct Offered {
    config: Config,
    slices: Vec<Arc<Slice>>,
}

impl Offered {
    // So many tools in all.
    fn new(total: usize) -> Offered {
        let slices = (0..UPSTREAMS).map(|_| tools(&page(total / UPSTREAMS, "word ")));
        Offered { config: configuration(), slices: slices.collect() }
    }

    fn parts(&self) -> Vec<Part> {
        let both = self.config.upstreams.iter().zip(&self.slices);
        both.map(|(config, slice)| Part {
            config: config.clone(),
            slice: Some(slice.clone()),
            freshness: Freshness::Live,
        })
        .collect()
    }

    fn catalog(&self, before: Option<&Catalog>) -> Arc<Catalog> {
        Arc::new(Catalog::build(1, self.parts(), before))
    }

    fn view(&self, catalog: &Arc<Catalog>) -> View {
        View::new(catalog, self.config.views.values().next())
    }
}

fn routes(c: &mut Criterion) {
    let mut group = c.benchmark_group("route");
    for total in [60, 600, 10_000] {
        let offered = Offered::new(total);
        let view = offered.view(&offered.catalog(None));
        let name = format!("up3__tool_{:05}", total / UPSTREAMS / 2);
        group.bench_function(BenchmarkId::from_parameter(total), |b| {
            b.iter(|| view.resolve(ListKind::Tools, black_box(&name)).unwrap());
        });
    }
    group.finish();
}

fn guard(c: &mut Criterion) {
    let mut config = configuration().upstreams[0].guard.clone();
    config.rate = Some(RateConfig {
        per_second: 1e12,
        burst: NonZeroU32::MAX,
        max_wait: Duration::from_secs(1),
    });
    let guard = Guard::new("up".into(), &config);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    c.bench_function("guard", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let deadline = Deadline::new(Duration::from_secs(60), Duration::from_secs(60));
                let ask = Ask { write: true, ..Ask::default() };
                let (ended, _) = guard.run(&ask, &deadline, |_| ready(Ok(Done::fine(())))).await;
                ended.unwrap();
            });
        });
    });
}

fn lists(c: &mut Criterion) {
    let mut group = c.benchmark_group("list page");
    for total in [600, 10_000] {
        let offered = Offered::new(total);
        let catalog = offered.catalog(None);
        for form in [Form::Canonical, Form::Plain] {
            let page = |view: &View| view.page(ListKind::Tools, None, PAGE, form).unwrap();
            let size = page(&offered.view(&catalog)).size();
            group.throughput(Throughput::Bytes(size as u64));
            // There is no other view yet that has the pages.
            group.bench_function(format!("{total} {form:?}, first time"), |b| {
                b.iter_batched(
                    || offered.view(&catalog),
                    |view| page(&view),
                    BatchSize::PerIteration,
                );
            });
            let view = offered.view(&catalog);
            page(&view);
            group.bench_function(format!("{total} {form:?}, prepared"), |b| b.iter(|| page(&view)));
        }
    }
    group.finish();
}

fn catalogs(c: &mut Criterion) {
    let mut group = c.benchmark_group("catalog");
    group.sample_size(20);
    for total in [600, 10_000] {
        let mut offered = Offered::new(total);
        group
            .bench_function(format!("{total}, from nothing"), |b| b.iter(|| offered.catalog(None)));
        // Another upstream's slice is as new as can be: each of its tools differs.
        let before = offered.catalog(None);
        let changed = page(total / UPSTREAMS, "more ");
        offered.slices[2] = tools(&changed);
        group.bench_function(format!("{total}, one upstream changed"), |b| {
            b.iter(|| offered.catalog(Some(&before)));
        });
        group.bench_function(format!("{total}, a slice read"), |b| {
            b.iter(|| tools(&changed));
        });
        let after = offered.catalog(Some(&before));
        group.bench_function(format!("{total}, digest of a view"), |b| {
            b.iter(|| offered.view(&after).digest(ListKind::Tools));
        });
    }
    group.finish();
}

criterion_group!(all, envelope, request_steps, routes, guard, lists, catalogs);
criterion_main!(all);
