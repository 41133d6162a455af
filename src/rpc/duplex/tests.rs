use tokio::io::AsyncReadExt;

use super::*;

fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        timeout(Duration::from_secs(30), test).await.expect("a test within 30 s")
    })
}

/// A connection's writer, and what is at its other end.
fn pair() -> (UnixStream, Rc<Writer>, impl Sized) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (read, write) = ours.into_split();
    (theirs, Writer::new(write), read)
}

/// Notes what it is told.
#[derive(Default)]
struct Notes(RefCell<Vec<String>>);

impl Inbound for Notes {
    fn take(&self, message: Vec<u8>) -> Result<()> {
        let text = String::from_utf8(message).unwrap();
        let bad = text == "bad";
        self.0.borrow_mut().push(text);
        if bad { Err(Error::Invalid("bad".into())) } else { Ok(()) }
    }

    fn end(&self, end: End) {
        self.0.borrow_mut().push(format!("{end:?}"));
    }
}

#[test]
fn each_side_of_a_stream_ends_by_itself() {
    let frame =
        |stream_id, flags| MessageHeader { length: 0, stream_id, type_: MESSAGE_TYPE_DATA, flags };
    let last = FLAG_REMOTE_CLOSED | FLAG_NO_DATA;
    run(async {
        let (_theirs, writer, _read) = pair();
        let streams = Streams::new(writer);
        streams.serve_calls();
        let mut made = Vec::new();
        for id in [1, 3, 5] {
            let notes = Rc::new(Notes::default());
            let mut outbound = None;
            let make = |out| {
                outbound = Some(out);
                Ok(notes.clone() as Rc<dyn Inbound>)
            };
            streams.open(id, make).map(drop).unwrap();
            made.push((notes, outbound.unwrap()));
        }
        assert!(streams.open(3, |_| unreachable!()).is_err(), "twice the same number");

        streams.deliver(frame(1, 0), Ok(b"a".to_vec())).unwrap();
        streams.deliver(frame(1, last), Ok(vec![])).unwrap();
        streams.deliver(frame(1, last), Ok(vec![])).unwrap(); // of no account
        made[0].1.send(b"still").await.unwrap();
        made[0].1.close().await.unwrap();
        made[0].1.close().await.unwrap();
        assert!(made[0].1.send(b"too late").await.is_err());

        made[1].1.close().await.unwrap();
        streams.deliver(frame(3, 0), Ok(b"b".to_vec())).unwrap();
        streams.deliver(frame(3, 0), Ok(b"bad".to_vec())).unwrap_err();
        streams.deliver(frame(3, 0), Ok(b"c".to_vec())).unwrap_err();
        streams.deliver(frame(7, 0), Ok(b"d".to_vec())).unwrap_err();
        streams.deliver(frame(7, last), Ok(vec![])).unwrap();
        streams.lose();
        assert!(streams.is_empty() && made[2].1.send(b"lost").await.is_err());

        let notes = made.iter().map(|(notes, _)| notes.0.borrow().join(" "));
        assert_eq!(notes.collect::<Vec<_>>(), ["a Closed", "b bad Lost", "Lost"]);
    });
}

#[test]
fn an_end_that_nobody_waits_for_is_told_all_the_same() {
    run(async {
        let (mut theirs, writer, _read) = pair();
        let streams = Streams::new(writer);
        let mut outbound = None;
        let make = |out| {
            outbound = Some(Rc::new(out));
            Ok(Rc::new(Notes::default()) as Rc<dyn Inbound>)
        };
        streams.open(1, make).map(drop).unwrap();
        let outbound = outbound.unwrap();
        let shortly = Duration::from_millis(20);
        let large = vec![b'a'; 4 << 20];
        assert!(timeout(shortly, outbound.write(&large)).await.is_err(), "more than fits");
        assert!(timeout(shortly, outbound.close()).await.is_err(), "the same");
        outbound.close_soon();
        let mut all = vec![0; large.len() + crate::rpc::HEADER];
        theirs.read_exact(&mut all).await.unwrap();
        let last = FLAG_REMOTE_CLOSED | FLAG_NO_DATA;
        assert_eq!(all[large.len()..], header(1, MESSAGE_TYPE_DATA, last, 0));
    });
}
