//! Reading on after a refusal.
//!
//! A request refused before its body was read leaves the client sending. Closing the connection then makes
//! the client's kernel throw away the answer it has not read yet (RFC 9112 section 9.6), and a person sees
//! "connection reset" instead of the reason. So what is left of the body is read and dropped, bounded.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt as _;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::runtime::Handle;

/// How long, and how much, is read on. By then the answer has arrived.
const LINGER: Duration = Duration::from_secs(5);
const LINGER_BYTES_MAX: usize = 256 << 20;

pub async fn linger(request: Request, next: Next) -> Response {
    // Such a client waits to be told to send (RFC 9110 section 10.1.1), so there is nothing to read.
    if request.headers().contains_key(header::EXPECT) {
        return next.run(request).await;
    }
    next.run(request.map(|body| Body::new(Lingering { body, ended: false }))).await
}

struct Lingering {
    body: Body,
    ended: bool,
}

impl HttpBody for Lingering {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.ended = true;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        if self.ended || self.body.is_end_stream() {
            return;
        }
        // Without a runtime the server is ending, and so is the connection.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(read_on(std::mem::take(&mut self.body)));
        }
    }
}

async fn read_on(body: Body) {
    let mut left = LINGER_BYTES_MAX;
    let mut chunks = body.into_data_stream();
    let reading = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            left = left.saturating_sub(chunk.len());
            if left == 0 {
                break;
            }
        }
    };
    // Whatever is left after that is cut off with the connection.
    let _in_time = tokio::time::timeout(LINGER, reading).await;
}
