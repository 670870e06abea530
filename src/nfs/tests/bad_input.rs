//! Calls that no kernel makes.

use super::*;

#[test]
fn garbage_is_refused_and_the_next_call_is_served() {
    let client = client();
    let root = client.root();
    for procedure in 1..=21 {
        let message = message(calls::PROGRAM, procedure, 0, &[0xff; 40]);
        let reply = client.server.answer(&message).unwrap();
        assert_eq!(Decoder::new(&reply[20..]).word(), Ok(4), "procedure {procedure}: garbage");
    }
    assert_eq!(client.server.answer(b"no call"), None);
    assert_eq!(client.server.answer(&message(100_227, 0, 0, &[])).unwrap()[20..], [0, 0, 0, 1]);
    assert_eq!(
        client.server.answer(&message(calls::PROGRAM, 22, 0, &[])).unwrap()[20..],
        [0, 0, 0, 3]
    );
    assert!(client.stat(&root).is_ok());
}

#[test]
fn names_that_are_none_lead_nowhere() {
    let client = client();
    fs::write(client.dir.path().join("secret"), "x").unwrap();
    let root = client.root();
    let long = "x".repeat(256);
    for (name, error) in [("", 22), ("../secret", 22), ("/etc", 22), ("a\0b", 22), (&long, 63)] {
        assert_eq!(client.lookup(&root, name), Err(error), "{name:?}");
        assert_eq!(client.create(&root, name, 0o644), Err(error), "{name:?}");
        assert_eq!(client.make(9, &root, name, 0o755), Err(error), "{name:?}");
        assert!(client.call(12, |a| named(a, &root, name.as_bytes())).is_err());
    }
    for name in [".", ".."] {
        assert!(client.call(13, |a| named(a, &root, name.as_bytes())).is_err());
        assert!(client.rename((&root, name), (&root, "x")).is_err());
    }
}

#[test]
fn handles_of_others_name_nothing() {
    let client = client();
    let mut forged = client.root();
    forged[20] ^= 1;
    assert_eq!(client.stat(&forged), Err(10001));
    assert_eq!(client.stat(&Vec::new()), Err(10001));
    let other = super::super::handle::Handle::root(NUMBER).seal(&[9; 32]);
    assert_eq!(client.stat(&other.to_vec()), Err(10001));
    let unknown = super::super::handle::Handle::root(NUMBER + 1).seal(&KEY);
    assert_eq!(client.stat(&unknown.to_vec()), Err(STALE));
}

#[tokio::test]
async fn a_call_that_claims_more_than_it_may_ends_the_connection() {
    let client = client();
    for head in [u32::MAX, 0, 1 << 31, (LONGEST_IO * 2) | 1 << 31] {
        let (mut guest, ours) = tokio::io::duplex(64);
        let serving = tokio::spawn(Arc::clone(&client.server).serve(ours, 700));
        guest.write_u32(head).await.unwrap();
        assert!(serving.await.unwrap().is_err(), "{head:x}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_takes_no_replies_does_not_fill_the_memory() {
    let client = client();
    let root = client.root();
    let file = client.create(&root, "f", 0o644).unwrap();
    fs::write(client.path("f"), vec![0; LONGEST_IO as usize]).unwrap();
    let mut arguments = Encoder::default();
    arguments.opaque(&file);
    arguments.long(0);
    arguments.word(LONGEST_IO);
    arguments.word(0);
    arguments.opaque(&vec![0; LONGEST_IO as usize]);
    let call = message(calls::PROGRAM, 7, 0, &arguments.0);
    let (guest, ours) = tokio::io::duplex(64);
    let serving = tokio::spawn(Arc::clone(&client.server).serve(ours, 700));
    let (_replies, mut calls) = tokio::io::split(guest);
    let sent = async {
        let mut count = 0;
        while calls.write_u32(u32::try_from(call.len()).unwrap() | 1 << 31).await.is_ok()
            && calls.write_all(&call).await.is_ok()
        {
            count += 1;
        }
        count
    };
    let count: usize = sent.await;
    assert!(count * (LONGEST_IO as usize) < 100 << 20, "{count}");
    assert!(serving.await.unwrap().is_err());
}
