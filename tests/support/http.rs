//! A client for pages.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// What came back.
#[derive(Debug)]
pub struct Page {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Page {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("a header of text"))
    }
}

/// GET, with these headers.
pub async fn get(address: &str, path: &str, headers: &[(&str, &str)]) -> Result<Page, String> {
    request(Method::GET, address, path, headers, String::new()).await
}

/// One request over a connection of its own.
pub async fn request(
    method: Method,
    address: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> Result<Page, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("{error}"))?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", address);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body))).expect("a request");
    let response = sender.send_request(request).await.map_err(|error| format!("{error}"))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.into_body().collect().await.map_err(|error| format!("{error}"))?.to_bytes();
    connection.abort();
    Ok(Page { status, headers, body: String::from_utf8(body.to_vec()).expect("a body of text") })
}
