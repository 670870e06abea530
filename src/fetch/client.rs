//! The HTTP client: which addresses it speaks to, what it retries, and how a thread that blocks
//! drives it.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use reqwest::{Response, StatusCode, Url, redirect};
use tokio::runtime::{Builder, Runtime};

use super::{Cancel, FetchError};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a server may say nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// Lists, signatures and directories are shorter.
const MAX_TEXT: usize = 16 << 20;
const MAX_REDIRECTS: usize = 10;
/// What an attempt brings at least, for the failures before it not to count.
const WORTHWHILE: u64 = 1 << 20;

/// How often something is tried, and the pause after the first failure; each later pause is twice
/// as long.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// Attempts before a server has sent anything.
    pub at_first: u32,
    /// Attempts in a row that bring nothing, once it has.
    pub later: u32,
    /// The first pause.
    pub pause: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { at_first: 3, later: 7, pause: Duration::from_millis(500) }
    }
}

/// A client for one build, on the thread that builds.
#[derive(Debug)]
pub struct Client {
    pub(super) http: reqwest::Client,
    /// `None` while it is dropped.
    runtime: Option<Runtime>,
    pub(super) cancel: Cancel,
    pub(super) retries: Retries,
    transport: Transport,
}

/// Which addresses are spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    /// HTTPS, and this host.
    Https,
    /// Plain HTTP too.
    Any,
}

impl Client {
    /// Makes a client whose requests end when `cancel` says so. Proxies are the environment's
    /// (`HTTPS_PROXY`, `NO_PROXY`), roots of trust the system's.
    ///
    /// # Errors
    /// `NoTls` where the system has no roots of trust.
    pub fn new(cancel: Cancel) -> Result<Self, FetchError> {
        Self::with_retries(cancel, Retries::default())
    }

    /// The same for what a signature covers: plain HTTP serves as well, as many mirrors have it.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_signed(cancel: Cancel) -> Result<Self, FetchError> {
        Self::with(cancel, Retries::default(), Transport::Any)
    }

    /// The same with other retries.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_retries(cancel: Cancel, retries: Retries) -> Result<Self, FetchError> {
        Self::with(cancel, retries, Transport::Https)
    }

    fn with(cancel: Cancel, retries: Retries, transport: Transport) -> Result<Self, FetchError> {
        // It fails if another thread has done it.
        drop(rustls::crypto::ring::default_provider().install_default());
        let http = reqwest::Client::builder()
            .user_agent(concat!("aqfs/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(redirect::Policy::custom(move |attempt| follow(attempt, transport)))
            .build()
            .map_err(|e| FetchError::NoTls(innermost(&e)))?;
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| FetchError::Io { what: "a client".into(), error })?;
        Ok(Self { http, runtime: Some(runtime), cancel, retries, transport })
    }

    /// Runs a future on this thread until it is done or cancelled.
    ///
    /// # Errors
    /// The future's own, or `Cancelled`.
    pub fn run<T>(
        &self,
        future: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        let Some(runtime) = &self.runtime else { return Err(FetchError::Cancelled) };
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => Err(FetchError::Cancelled),
                done = future => done,
            }
        })
    }

    /// Fetches something short: a list, a signature, a directory.
    ///
    /// # Errors
    /// [`FetchError`].
    pub fn bytes(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        self.run(async {
            let mut attempts = Attempts::new(self.retries, 0);
            loop {
                match self.bytes_once(url).await {
                    Ok(bytes) => return Ok(bytes),
                    Err(failure) => attempts.pause_after(failure, url).await?,
                }
            }
        })
    }

    /// Fetches a short text; what is not UTF-8 in it is replaced.
    ///
    /// # Errors
    /// As [`Self::bytes`].
    pub fn text(&self, url: &str) -> Result<String, FetchError> {
        Ok(String::from_utf8_lossy(&self.bytes(url)?).into_owned())
    }

    async fn bytes_once(&self, url: &str) -> Result<Vec<u8>, Failure> {
        let mut response = self.get(url, |request| request).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|e| Failure::of(url, &e))? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_TEXT {
                let (url, limit) = (url.to_owned(), MAX_TEXT);
                return Err(Failure::Final(FetchError::TooLong { url, limit }));
            }
        }
        Ok(bytes)
    }

    /// Sends a request and returns an answer that is a success.
    pub(super) async fn get(
        &self,
        url: &str,
        with: impl FnOnce(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> Result<Response, Failure> {
        let parsed = check_url(url, self.transport).map_err(Failure::Final)?;
        let response =
            with(self.http.get(parsed)).send().await.map_err(|e| Failure::of(url, &e))?;
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        let may_pass = status.is_server_error()
            || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
        if may_pass {
            return Err(Failure::Passing(format!("the server answers {status}")));
        }
        let (url, status) = (url.to_owned(), status.to_string());
        Err(Failure::Final(FetchError::Status { url, status }))
    }
}

impl Drop for Client {
    /// A name that is being resolved, on a thread that nothing interrupts, is not waited for.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Parses an address and says whether it may be spoken to: HTTPS, or this host.
fn check_url(url: &str, transport: Transport) -> Result<Url, FetchError> {
    let bad = |reason: String| FetchError::BadUrl { url: url.to_owned(), reason };
    let parsed = Url::parse(url).map_err(|e| bad(e.to_string()))?;
    if is_safe(&parsed, transport) {
        return Ok(parsed);
    }
    Err(bad("only https:// is accepted, and http:// of 127.0.0.1 and localhost".to_owned()))
}

fn is_safe(url: &Url, transport: Transport) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let plain_will_do = is_here || transport == Transport::Any;
    url.scheme() == "https" || (url.scheme() == "http" && plain_will_do)
}

fn follow(attempt: redirect::Attempt<'_>, transport: Transport) -> redirect::Action {
    let was_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if !is_safe(attempt.url(), transport) || (was_https && attempt.url().scheme() != "https") {
        let to = attempt.url().to_string();
        return attempt.error(BadRedirect(format!("it redirects to {to}, which is not HTTPS")));
    }
    if attempt.previous().len() > MAX_REDIRECTS {
        return attempt.error(BadRedirect("it redirects without an end".to_owned()));
    }
    attempt.follow()
}

#[derive(Debug)]
struct BadRedirect(String);

impl fmt::Display for BadRedirect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for BadRedirect {}

/// Why one attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may succeed.
    Passing(String),
    /// It would not.
    Final(FetchError),
}

impl Failure {
    pub(super) fn of(url: &str, error: &reqwest::Error) -> Self {
        let reason = innermost(error);
        if error.is_redirect() {
            return Self::Final(FetchError::Redirect { url: url.to_owned(), reason });
        }
        if error.is_timeout() {
            return Self::Passing("the server does not answer in time".to_owned());
        }
        Self::Passing(reason)
    }
}

/// Returns the innermost cause: the others say that sending failed.
pub fn innermost(error: &dyn Error) -> String {
    let causes = std::iter::successors(Some(error), |e| (*e).source());
    let said = causes.last().map(ToString::to_string).unwrap_or_default();
    said.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Counts failures, and pauses between attempts.
#[derive(Debug)]
pub(super) struct Attempts {
    retries: Retries,
    failed: u32,
    limit: u32,
    /// How much was there when failures were last forgotten.
    highest: u64,
}

impl Attempts {
    pub(super) fn new(retries: Retries, done: u64) -> Self {
        let limit = if done > 0 { retries.later } else { retries.at_first };
        Self { retries, failed: 0, limit, highest: done }
    }

    /// The server has sent something. Earlier failures are forgotten after so much of it that an
    /// answer which always breaks off, or always begins again, has an end.
    pub(super) fn succeed(&mut self, done: u64) {
        self.limit = self.retries.later;
        if done >= self.highest + WORTHWHILE {
            (self.failed, self.highest) = (0, done);
        }
    }

    /// Pauses after a failure, or returns it if nothing more is tried.
    pub(super) async fn pause_after(
        &mut self,
        failure: Failure,
        url: &str,
    ) -> Result<(), FetchError> {
        let reason = match failure {
            Failure::Passing(reason) => reason,
            Failure::Final(error) => return Err(error),
        };
        self.failed += 1;
        if self.failed >= self.limit {
            let (url, attempts) = (url.to_owned(), self.failed);
            return Err(FetchError::Unreachable { url, reason, attempts });
        }
        tokio::time::sleep(self.retries.pause * (1 << (self.failed - 1).min(8))).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::mirror::Mirror;
    use super::*;

    fn client() -> Client {
        let pause = Duration::from_millis(5);
        Client::with_retries(Cancel::default(), Retries { at_first: 2, later: 3, pause }).unwrap()
    }

    #[test]
    fn only_https_and_this_host_are_spoken_to() {
        for good in [
            "https://example.org/x",
            "http://127.0.0.2:8080/",
            "http://[::1]/",
            "http://localhost/",
        ] {
            assert!(check_url(good, Transport::Https).is_ok(), "{good}");
        }
        for bad in ["http://example.org/x", "ftp://127.0.0.1/", "file:///etc/passwd", "x", ""] {
            assert!(check_url(bad, Transport::Https).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_signed_comes_by_plain_http_too() {
        assert!(check_url("http://example.org/x", Transport::Any).is_ok());
        assert!(check_url("ftp://example.org/x", Transport::Any).is_err());
    }

    #[test]
    fn a_short_text_is_fetched_and_what_is_not_there_is_told_at_once() {
        let mirror = Mirror::start();
        mirror.put("list", "hello");
        assert_eq!(client().text(&mirror.url("list")).unwrap(), "hello");
        let error = client().text(&mirror.url("none")).unwrap_err().to_string();
        assert!(error.ends_with("/none: the server answers 404 Not Found"), "{error}");
        assert_eq!(mirror.requests("none"), 1);
    }

    #[test]
    fn a_server_that_fails_for_a_moment_is_asked_again_and_one_that_is_gone_is_given_up() {
        let mirror = Mirror::start();
        mirror.put("list", "hello");
        mirror.fail_next("list", 503);
        assert_eq!(client().text(&mirror.url("list")).unwrap(), "hello");
        let url = mirror.url("list");
        drop(mirror);
        let error = client().text(&url).unwrap_err().to_string();
        assert!(error.contains("refused") && error.ends_with("(2 attempts)"), "{error}");
    }

    #[test]
    fn a_redirect_is_followed_but_not_to_plain_http_elsewhere() {
        let mirror = Mirror::start();
        mirror.put("new", "hello");
        mirror.redirect("old", &mirror.url("new"));
        mirror.redirect("bad", "http://mirror.example/new");
        mirror.redirect("loop", &mirror.url("loop"));
        assert_eq!(client().text(&mirror.url("old")).unwrap(), "hello");
        let error = client().text(&mirror.url("bad")).unwrap_err().to_string();
        assert!(error.contains("redirects to http://mirror.example/new, which is not"), "{error}");
        assert!(client().text(&mirror.url("loop")).is_err());
    }

    #[test]
    fn a_cancelled_client_does_not_wait() {
        let cancel = Cancel::default();
        cancel.cancel();
        let client = Client::new(cancel).unwrap();
        assert!(matches!(client.text("https://192.0.2.1/"), Err(FetchError::Cancelled)));
    }
}
