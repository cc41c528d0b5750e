//! The Rust SDK as a server and as a client.

use std::borrow::Cow;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ClientConfig, ContentBlock, ErrorCode,
    ErrorData, ListToolsResult, PaginatedRequestParams, ProgressNotificationParam, ProtocolVersion,
    ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{RequestContext, RoleServer, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ClientLifecycleMode, ClientServiceExt as _, ServerHandler};
use serde_json::{Value, json};

use super::clients::Step;
use super::servers::{self, Server};

#[derive(Clone)]
struct Tools(&'static [ProtocolVersion]);

impl ServerHandler for Tools {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    fn supported_protocol_versions(&self) -> Cow<'static, [ProtocolVersion]> {
        Cow::Borrowed(self.0)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let schema = json!({"type": "object"}).as_object().unwrap().clone();
        let tools = ["echo", "broke", "steps"].map(|n| Tool::new(n, n, schema.clone()));
        Ok(ListToolsResult::with_all_items(tools.to_vec()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let text = match &*request.name {
            "echo" => Value::Object(request.arguments.unwrap_or_default()).to_string(),
            "steps" => {
                if let Some(token) = context.meta.get_progress_token() {
                    for n in 1..=2 {
                        let step = ProgressNotificationParam::new(token.clone(), f64::from(n));
                        context.peer.notify_progress(step).await.unwrap();
                    }
                }
                "done".into()
            }
            _ => return Err(ErrorData::new(ErrorCode(-31050), "broke", Some(json!({"x": 1})))),
        };
        Ok(CallToolResult::success(vec![ContentBlock::text(text)]).into())
    }
}

/// One that speaks one era.
pub async fn server(name: &'static str, title: &'static str, modern: bool) -> Server {
    let tools = if modern {
        Tools(&[ProtocolVersion::V_2026_07_28])
    } else {
        Tools(&[ProtocolVersion::V_2025_11_25])
    };
    let service: StreamableHttpService<Tools, LocalSessionManager> = StreamableHttpService::new(
        move || Ok(tools.clone()),
        Arc::default(),
        StreamableHttpServerConfig::default(),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let builder = Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    servers::rust(name, title, &url)
}

/// The client: the names of the tools, then each call's text, or the code of its error.
pub async fn client(url: &str, modern: bool, calls: &[(String, Value)]) -> Vec<Step> {
    let mode = if modern {
        ClientLifecycleMode::Discover { preferred_versions: vec![ProtocolVersion::V_2026_07_28] }
    } else {
        ClientLifecycleMode::Initialize
    };
    let config = StreamableHttpClientTransportConfig::with_uri(url.to_owned());
    let transport = StreamableHttpClientTransport::from_config(config);
    let client = ClientConfig::default().serve_with_lifecycle(transport, mode).await.unwrap();
    let tools = client.list_all_tools().await.unwrap();
    let mut steps = vec![Ok(tools.iter().map(|t| t.name.to_string()).collect())];
    for (name, arguments) in calls {
        let params = CallToolRequestParams::new(name.clone())
            .with_arguments(arguments.as_object().unwrap().clone());
        steps.push(match client.call_tool(params).await {
            Ok(result) => super::clients::said(&serde_json::to_value(result).unwrap()),
            Err(ServiceError::McpError(error)) => Err(error.code.0.to_string()),
            Err(other) => panic!("{name}: {other:?}"),
        });
    }
    client.cancel().await.unwrap();
    steps
}
