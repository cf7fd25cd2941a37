//! When a keyed action that comes again is the same request.

use super::*;

const FORM: &str = "multipart/form-data; boundary=";

fn form(boundary: &str, value: &str) -> String {
    format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n{value}\r\n--{boundary}--\r\n"
    )
}

#[test]
fn a_form_that_is_written_anew_is_the_same_request() {
    let wire = Wire::start();
    let ask = |way: &str, key: &str, content_type: &str, body: &str| {
        let length = body.len().to_string();
        let fields = [
            ("Idempotency-Key", key),
            ("Cookie", "who=ada"),
            ("Content-Type", content_type),
            ("Content-Length", &length),
        ];
        let mut connection = wire.edge.connect();
        connection.send_head("POST", way, &fields);
        connection.send(body);
        connection.answer().unwrap()
    };
    let replayed = |answer: &Answer| answer.header("idempotent-replayed") == Some("true");
    for way in ["/body", "/head"] {
        let first = ask(way, "form", &format!("{FORM}b1"), &form("b1", "tea"));
        assert_eq!((first.status, replayed(&first)), (200, false), "{way}: {}", first.text());
        let again = ask(way, "form", "Multipart/Form-Data; boundary=\"x2\"", &form("x2", "tea"));
        assert_eq!((again.status, replayed(&again)), (200, true), "{way}: {}", again.text());
        if way == "/body" {
            let other = ask(way, "form", &format!("{FORM}x3"), &form("x3", "milk"));
            other.problem(422, "idempotency-key-reused");
        }
        let first = ask(way, "json", "application/json; charset=utf-8", "{}");
        assert_eq!((first.status, replayed(&first)), (200, false));
        let again = ask(way, "json", "Application/JSON;charset=\"UTF-8\"", "{}");
        assert_eq!((again.status, replayed(&again)), (200, true), "{way}: {}", again.text());
        ask(way, "json", "text/json", "{}").problem(422, "idempotency-key-reused");
        assert_eq!(wire.app.take().len(), 2, "{way}: each was sent once");
    }
}
