//! What is said to the daemon.

use portolan_resident::control::{Answer, Request};
use portolan_resident::foreign;

/// A line of the control socket, of either side; or the memory of a predecessor.
pub fn control(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(bytes) {
        let line = serde_json::to_string(&request).expect("plain values serialise");
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Request>(&line).ok(), Some(request));
    }
    if let Ok(answer) = serde_json::from_slice::<Answer>(bytes) {
        let line = serde_json::to_string(&answer).expect("plain values serialise");
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<Answer>(&line).ok(), Some(answer));
    }
    if let Some(again) = foreign::memory(bytes) {
        assert_eq!(foreign::memory(again.as_bytes()), Some(again));
    }
}

/// A request for metrics.
pub fn metrics(bytes: &[u8]) {
    let answer = foreign::metrics(bytes);
    let answer = std::str::from_utf8(&answer).expect("it is text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head has an end");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("it has a length");
    assert_eq!(length.parse(), Ok(body.len()));
    let asks =
        [&b"GET /metrics "[..], b"GET / ", b"GET /metrics\r", b"GET /\r"].iter().any(|ask| bytes.starts_with(ask));
    assert_eq!(head.starts_with("HTTP/1.1 200 "), body.starts_with("portolan_up"));
    assert!(asks || !body.starts_with("portolan_up"), "{:?}", String::from_utf8_lossy(bytes));
}
