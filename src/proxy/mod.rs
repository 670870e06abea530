//! The web as a guest may reach it: an HTTP proxy on one stream, for the destinations that its VM allows.
//!
//! A request names where it goes, by `CONNECT host:port` or by a URL of plain HTTP. What is allowed is
//! dialled from the host; the rest is refused with a sentence that says which file allows it. `dial`
//! finds the address.
//!
//! Not here: how the guest's connections get here (`guest`), which destinations there are (`vm`).

mod dial;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName};
use hyper::http::uri::PathAndQuery;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper::{Method, Request, Response, StatusCode, Uri, client, server};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long a guest may take to say what it wants.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Headers that are of one connection only, and no business of the destination.
const HOP_BY_HOP: [HeaderName; 4] =
    [header::CONNECTION, header::PROXY_AUTHORIZATION, header::TE, header::UPGRADE];

/// Where a request wants to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// A name or an address, as the guest has it, in lower case.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// What a guest may reach.
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// Says whether it may go there.
    fn permits(&self, target: &Target) -> bool;
    /// Hears of what it may not.
    fn refused(&self, target: &Target);
}

type Body = BoxBody<Bytes, hyper::Error>;
type Answer = Result<Response<Body>, Refusal>;

/// Why a request comes to nothing.
struct Refusal(StatusCode, String);

/// The tunnel that a connection has become, as long as its requests are served.
type Tunnels = Arc<Mutex<JoinSet<()>>>;

/// Serves the requests that come on a stream until its end, which is that of a tunnel too. Dropping this ends
/// both.
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    policy: Arc<dyn Policy>,
) {
    let tunnels = Tunnels::default();
    let for_requests = Arc::clone(&tunnels);
    let answer = service_fn(move |request| {
        let (policy, tunnels) = (Arc::clone(&policy), Arc::clone(&for_requests));
        async move {
            let answered = answer(request, &*policy, &tunnels).await;
            Ok::<_, Infallible>(answered.unwrap_or_else(Refusal::into_response))
        }
    });
    let mut http = server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
    http.preserve_header_case(true);
    let served = http.serve_connection(TokioIo::new(stream), answer).with_upgrades().await;
    if let Err(error) = served {
        tracing::debug!(%error, "a guest's connection to the proxy");
    }
    let tunnels = std::mem::take(&mut *tunnels.lock());
    tunnels.join_all().await;
}

async fn answer(request: Request<Incoming>, policy: &dyn Policy, tunnels: &Tunnels) -> Answer {
    let target = Target::of(&request)?;
    if !policy.permits(&target) {
        policy.refused(&target);
        let sentence = format!("{target} is not in config/allow of this VM");
        return Err(Refusal(StatusCode::FORBIDDEN, sentence));
    }
    let unreached = |why: String| Refusal(StatusCode::BAD_GATEWAY, format!("{target}: {why}"));
    let stream = dial::connect(&target).await.map_err(unreached)?;
    if request.method() == Method::CONNECT {
        tunnels.lock().spawn(tunnel(request, stream));
        return Ok(Response::new(empty()));
    }
    forward(request, stream).await.map_err(|error| unreached(error.to_string()))
}

/// Joins both sides once the guest has heard that it may speak.
async fn tunnel(request: Request<Incoming>, mut stream: TcpStream) {
    let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
    let mut guest: TokioIo<Upgraded> = TokioIo::new(upgraded);
    // It ends when both sides have ended, or one has broken off.
    drop(copy_bidirectional(&mut guest, &mut stream).await);
}

/// Passes a request on, and its response back.
async fn forward(
    mut request: Request<Incoming>,
    stream: TcpStream,
) -> Result<Response<Body>, hyper::Error> {
    let mut http = client::conn::http1::Builder::new();
    http.preserve_header_case(true);
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    HOP_BY_HOP.iter().for_each(|name| drop(request.headers_mut().remove(name)));
    request.headers_mut().remove("proxy-connection");
    Ok(sender.send_request(request).await?.map(BodyExt::boxed))
}

impl Target {
    fn of(request: &Request<Incoming>) -> Result<Self, Refusal> {
        let uri = request.uri();
        let bad = |why: &str| Refusal(StatusCode::BAD_REQUEST, why.to_owned());
        let port = match (request.method(), uri.scheme_str()) {
            (&Method::CONNECT, _) => uri.port_u16().ok_or_else(|| bad("CONNECT needs a port"))?,
            (_, Some("http")) => uri.port_u16().unwrap_or(80),
            _ => return Err(bad("this is a proxy: it takes CONNECT and http:// URLs")),
        };
        let host = uri.host().ok_or_else(|| bad("the request names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Refusal {
    fn into_response(self) -> Response<Body> {
        let Self(status, sentence) = self;
        let body = Full::new(Bytes::from(format!("aqfs: {sentence}\n")));
        let mut response = Response::new(body.map_err(|never| match never {}).boxed());
        *response.status_mut() = status;
        response
    }
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}
