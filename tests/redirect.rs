//! Redirect delivery from outside: the seven steps, and what happens when one of them does not.

mod support;

use support::*;

#[test]
fn a_request_is_answered_by_a_worker_and_nothing_is_left() {
    let set = Set::start(ECHO);
    let address = set.address(0);
    let told = exchange(address, head("GET", "/hello?a=b", address, "").as_bytes()).unwrap();
    assert_eq!(told.status, 307);
    let location = told.header("location").unwrap();
    assert!(location.starts_with("http://127.0.0.1:") && location.ends_with("/hello?a=b"), "{location}");
    assert_eq!(told.header("connection"), Some("close"));

    let answer = get(address, "/hello?a=b").unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "GET /hello?a=b\n"));
    let body: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let answer = request(address, "PUT", "/", &body).unwrap();
    assert!(answer.status == 200 && answer.body == body);
    set.stop();
}
