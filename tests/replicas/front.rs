//! A door before an upstream that can be shut: then nobody answers at its address, and whatever
//! was open ends.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;

use crate::harness::scripted::Scripted;

pub struct Front {
    pub url: String,
    at: SocketAddr,
    behind: Arc<str>,
    open: Option<JoinHandle<()>>,
}

impl Front {
    pub async fn before(upstream: &Scripted) -> Front {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let behind = upstream.url.trim_start_matches("http://").trim_end_matches("/mcp").into();
        let mut front = Front { url: format!("http://{at}/mcp"), at, behind, open: None };
        front.serve(listener);
        front
    }

    fn serve(&mut self, listener: TcpListener) {
        let behind = self.behind.clone();
        self.open = Some(tokio::spawn(async move {
            // Ends with the task.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut ours, _)) = listener.accept().await {
                let behind = behind.clone();
                connections.spawn(async move {
                    let Ok(mut theirs) = TcpStream::connect(&*behind).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
                });
            }
        }));
    }

    /// From now on connections are refused.
    pub async fn shut(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort();
            let _ = open.await;
        }
    }

    /// And from now on no more.
    pub fn open(&mut self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.at).unwrap();
        self.serve(socket.listen(64).unwrap());
    }
}
