//! The proxy over a stream in memory, to a server on this host.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpListener;

use super::*;

/// Permits one port of the host, and notes what it refuses.
#[derive(Debug, Default)]
struct One {
    port: u16,
    refused: parking_lot::Mutex<Vec<String>>,
}

impl Policy for One {
    fn permits(&self, target: &Target) -> bool {
        *target == Target { host: "10.0.2.2".into(), port: self.port }
    }

    fn refused(&self, target: &Target) {
        self.refused.lock().push(target.to_string());
    }
}

/// Accepts one connection, reads what comes up to an empty line and answers.
async fn web(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let asked = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let (mut heard, mut byte) = (Vec::new(), [0]);
        while !heard.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.is_ok_and(|n| n > 0) {
            heard.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).await.expect("an answer");
        String::from_utf8(heard).expect("text")
    });
    (port, asked)
}

fn guest(policy: &Arc<One>) -> DuplexStream {
    let (guest, ours) = duplex(4096);
    tokio::spawn(serve(ours, Arc::clone(policy) as Arc<dyn Policy>));
    guest
}

async fn ask(policy: &Arc<One>, text: &str) -> String {
    let mut guest = guest(policy);
    guest.write_all(text.as_bytes()).await.expect("a request");
    let mut said = String::new();
    guest.read_to_string(&mut said).await.expect("an answer");
    said
}

#[tokio::test]
async fn a_url_is_passed_on_without_what_is_meant_for_the_proxy() {
    let (port, asked) =
        web("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello").await;
    let policy = Arc::new(One { port, ..One::default() });
    let request = format!(
        "GET http://10.0.2.2:{port}/a?b=c HTTP/1.1\r\nHost: 10.0.2.2\r\nProxy-Connection: keep-alive\r\n\
         Proxy-Authorization: x\r\nX-Own: 1\r\nConnection: close\r\n\r\n"
    );
    let said = ask(&policy, &request).await;
    assert!(said.starts_with("HTTP/1.1 200 OK") && said.ends_with("\r\n\r\nhello"), "{said}");
    let heard = asked.await.expect("what it was asked");
    assert!(heard.starts_with("GET /a?b=c HTTP/1.1\r\n") && heard.contains("X-Own: 1"), "{heard}");
    assert!(!heard.to_lowercase().contains("proxy-"), "{heard}");
}

#[tokio::test]
async fn a_tunnel_carries_both_ways() {
    let (port, asked) = web("pong").await;
    let policy = Arc::new(One { port, ..One::default() });
    let mut guest = guest(&policy);
    let connect = format!("CONNECT 10.0.2.2:{port} HTTP/1.1\r\nHost: x\r\n\r\n");
    guest.write_all(connect.as_bytes()).await.expect("a request");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(guest.read_u8().await.expect("its answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 200"), "{head:?}");
    guest.write_all(b"ping\r\n\r\n").await.expect("bytes");
    let mut said = String::new();
    guest.read_to_string(&mut said).await.expect("bytes back");
    assert_eq!(
        (said.as_str(), asked.await.expect("bytes there").as_str()),
        ("pong", "ping\r\n\r\n")
    );
}

#[tokio::test]
async fn a_connection_is_served_as_long_as_its_tunnel_is_open() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let (mut guest, ours) = duplex(4096);
    let served = tokio::spawn(serve(ours, Arc::new(One { port, ..One::default() })));
    let connect = format!("CONNECT 10.0.2.2:{port} HTTP/1.1\r\nHost: x\r\n\r\n");
    guest.write_all(connect.as_bytes()).await.expect("a request");
    let (mut there, _) = listener.accept().await.expect("a connection");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(guest.read_u8().await.expect("its answer"));
    }
    there.write_all(b"x").await.expect("a byte");
    assert_eq!(guest.read_u8().await.expect("the byte"), b'x');
    assert!(!served.is_finished(), "it counts among the guest's connections");
    drop((guest, there));
    served.await.expect("its end");
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_and_told() {
    let policy = Arc::new(One::default());
    let close = "Connection: close\r\n\r\n";
    let said =
        ask(&policy, &format!("CONNECT Evil.example.:443 HTTP/1.1\r\nHost: x\r\n{close}")).await;
    assert!(said.starts_with("HTTP/1.1 403") && said.contains("config/allow"), "{said}");
    let said = ask(&policy, &format!("GET http://[::1]/ HTTP/1.1\r\nHost: x\r\n{close}")).await;
    assert!(said.starts_with("HTTP/1.1 403"), "{said}");
    assert_eq!(*policy.refused.lock(), ["evil.example:443", "::1:80"]);
}

#[tokio::test]
async fn what_is_no_request_to_a_proxy_is_a_bad_one() {
    let policy = Arc::new(One::default());
    for line in ["GET / HTTP/1.1", "GET https://x/ HTTP/1.1", "CONNECT x HTTP/1.1"] {
        let said = ask(&policy, &format!("{line}\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        assert!(said.starts_with("HTTP/1.1 400"), "{line}: {said}");
    }
    assert!(policy.refused.lock().is_empty());
    assert!(ask(&policy, "\0\0\r\n\r\n").await.starts_with("HTTP/1.1 400"));
}

#[tokio::test]
async fn a_destination_that_does_not_answer_is_a_bad_gateway() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("its address").port();
    drop(listener);
    let policy = Arc::new(One { port, ..One::default() });
    let said = ask(
        &policy,
        &format!("GET http://10.0.2.2:{port}/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
    .await;
    assert!(said.starts_with("HTTP/1.1 502") && said.contains("refused"), "{said}");
}
