//! Fetch what an upstream offers: every list, every page, within bounds.

use bytes::Bytes;

use crate::aside::aside_from;
use crate::catalog::slice::{About, PageError, Slice, SliceBuilder};
use crate::config::UpstreamConfig;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::capability::SKILLS;
use crate::protocol::error::METHOD_NOT_FOUND;
use crate::protocol::method::ListKind;

use super::link::{Link, result_of};

/// All lists of the upstream behind `link`.
///
/// A list that the upstream did not declare is not asked for; one that it declared and then does
/// not know is empty. Any other error fails the whole: a catalog that lacks one list without
/// anyone knowing is worse than yesterday's.
pub async fn load(link: &Link, config: &UpstreamConfig) -> Result<Slice, Fault> {
    let raw = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let about = About {
        revision: link.agreed.revision,
        capabilities: raw(&link.agreed.capabilities),
        server_info: link.agreed.server_info.as_deref().map(raw),
        instructions: link.agreed.instructions.as_deref().map(Into::into),
        sse: link.agreed.sse,
    };
    let skills = about.extension(SKILLS).is_some();
    let mut builder = SliceBuilder::new(about, config.max_items);
    for kind in ListKind::ALL {
        let offered = match kind {
            ListKind::Tools => link.agreed.offers("tools"),
            ListKind::Prompts => link.agreed.offers("prompts"),
            ListKind::Resources | ListKind::Templates => link.agreed.offers("resources"),
            ListKind::Skills => skills,
        };
        if !offered {
            continue;
        }
        tokio::time::timeout(config.list_timeout, pages(link, config, kind, &mut builder))
            .await
            .map_err(|_| {
            Fault::new(
                Reason::DeadlineExceeded,
                Delivery::Unknown,
                format!("{} took longer than {:?}", kind.method(), config.list_timeout),
            )
        })??;
    }
    Ok(builder.finish())
}

async fn pages(
    link: &Link,
    config: &UpstreamConfig,
    kind: ListKind,
    builder: &mut SliceBuilder,
) -> Result<(), Fault> {
    let mut cursor: Option<String> = None;
    for _ in 0..config.max_pages {
        let params = match &cursor {
            // An empty string is a cursor like any other (any revision, server/utilities/pagination).
            Some(c) => {
                vec![("cursor", Bytes::from(serde_json::to_vec(c).expect("a string serialises")))]
            }
            None => vec![],
        };
        let frame = link.ask(kind.method(), &params).await?;
        if cursor.is_none() && frame.error_code() == Some(i64::from(METHOD_NOT_FOUND)) {
            return Ok(());
        }
        let result = result_of(&frame, kind.method())?;
        let next = aside_from(result.len(), || builder.add_page(kind, &result)).map_err(|e| {
            let text = match e {
                PageError::CursorLoop => "repeats a cursor: its pages go in a circle",
                PageError::NoList(_) | PageError::BadCursor => "is not valid",
            };
            let text = format!("the upstream's {} {text}", kind.method());
            Fault::new(Reason::Garbled, Delivery::Refused, text).because(e)
        })?;
        match next {
            None => return Ok(()),
            Some(next) => {
                if builder.is_full(kind) {
                    builder.more_is_left_out(kind);
                    tracing::warn!(upstream = %config.name, list = kind.method(), max_items = config.max_items,
                        "the list has more items than max_items; the rest is left out");
                    return Ok(());
                }
                cursor = Some(next);
            }
        }
    }
    tracing::warn!(upstream = %config.name, list = kind.method(), max_pages = config.max_pages,
        "the list has more pages than max_pages; the rest is left out");
    Ok(())
}
