//! Whose key it is, when two requests are the same, and which record follows which.

use super::*;

fn claim(body: Option<&str>) -> Claim {
    Claim {
        subject: Subject::Action,
        environment: "studylab".parse().unwrap(),
        route: "/actions/*".into(),
        at: "studylab/production/aa".into(),
        key_hash: key_hash("k1"),
        event: None,
        fingerprint: RequestFingerprint { head: "h".into(), body: body.map(str::to_owned) },
        retention_ms: 1000,
        request: "r1".into(),
    }
}
fn holder() -> Holder {
    Holder { node: "n".into(), run: "1".into() }
}
fn at(state: AttemptState) -> Attempted {
    let claim = claim(Some("b"));
    let r = reserved(&claim, &holder(), None, Wall(5));
    Attempted { state, ..forwarded(&r, &claim.fingerprint, None, Wall(6)) }
}

#[test]
fn every_state_has_its_answer() {
    use AttemptState as S;
    let same = RequestFingerprint { head: "h".into(), body: Some("b".into()) };
    for (state, alive, verdict) in [
        (S::Reserved, true, Repeat::InProgress),
        (S::Reserved, false, Repeat::Free),
        (S::Forwarded, true, Repeat::InProgress),
        (S::Forwarded, false, Repeat::Unknown),
        (S::Unknown, false, Repeat::Unknown),
        (S::Unknown, true, Repeat::Unknown),
        (S::Completed, false, Repeat::Replay),
        (S::CompletedUnreplayable, false, Repeat::NotReplayable),
        (S::Released, false, Repeat::Free),
    ] {
        assert_eq!(judge(&at(state), &same, true, alive), verdict, "{state:?} {alive}");
        let head = RequestFingerprint { head: "other".into(), body: None };
        assert_eq!(judge(&at(state), &head, true, alive), Repeat::Reused);
        let body = RequestFingerprint { head: "h".into(), body: Some("other".into()) };
        assert_eq!(judge(&at(state), &body, true, alive), Repeat::Reused);
        let unread = RequestFingerprint { head: "h".into(), body: None };
        assert_eq!(judge(&at(state), &unread, true, alive), Repeat::NeedsBody);
        assert_ne!(judge(&at(state), &unread, false, alive), Repeat::NeedsBody);
    }
}

#[test]
fn nothing_that_was_sent_is_free_again_by_itself() {
    // Every way from forwarded, but for a resolution: never free.
    let sent = at(AttemptState::Forwarded);
    let fingerprint = RequestFingerprint { head: "h".into(), body: Some("b".into()) };
    for came in [
        AttemptOutcome::Whole { status: 500 },
        AttemptOutcome::NotStored { status: 200 },
        AttemptOutcome::Nothing,
    ] {
        let next = ended(&sent, came, Wall(9));
        assert_ne!(judge(&next, &fingerprint, true, false), Repeat::Free, "{came:?}");
        assert_ne!(judge(&next, &fingerprint, true, true), Repeat::Free, "{came:?}");
    }
    let next = recovered(&sent, Wall(9)).unwrap();
    assert_eq!(judge(&next, &fingerprint, true, false), Repeat::Unknown);
    // A reservation that was never sent leaves nothing.
    let r = reserved(&claim(None), &holder(), None, Wall(5));
    assert_eq!((recovered(&r, Wall(9)), released(&r, Wall(9))), (None, None));
}

#[test]
fn only_the_attempt_in_question_is_resolved_and_only_from_unknown() {
    let unknown = at(AttemptState::Unknown);
    let yes = resolved(&unknown, 1, Resolution::CarriedOut, "operator", Wall(9)).unwrap();
    assert_eq!(yes.state, AttemptState::CompletedUnreplayable);
    let no = resolved(&unknown, 1, Resolution::NotCarriedOut, "operator", Wall(9)).unwrap();
    let (kept, why) = (evidence_of(&yes), evidence_of(&no).why);
    assert_eq!((kept.decision.as_str(), kept.attempt), ("resolved-carried-out", 1));
    assert_eq!(evidence_of(&no).decision, "resolved-not-carried-out");
    assert_eq!((why.as_str(), kept.at), ("by operator", Wall(9)));
    let again = reserved(&claim(Some("b")), &holder(), Some(&no), Wall(10));
    let again = forwarded(&again, &claim(Some("b")).fingerprint, None, Wall(11));
    assert_eq!((again.attempt, again.created, again.expires), (2, Wall(5), Wall(1010)));
    assert_eq!(resolved(&unknown, 2, Resolution::CarriedOut, "x", Wall(9)), None);
    for state in [AttemptState::Forwarded, AttemptState::Completed, AttemptState::Released] {
        assert_eq!(resolved(&at(state), 1, Resolution::NotCarriedOut, "x", Wall(9)), None);
    }
}

#[test]
fn an_event_is_done_only_after_the_apps_2xx() {
    let mut sent = at(AttemptState::Forwarded);
    sent.subject = Subject::Event;
    let after = |came| judge_event(&ended(&sent, came, Wall(9)), false);
    assert_eq!(after(AttemptOutcome::Whole { status: 204 }), Delivered::Accepted);
    assert_eq!(after(AttemptOutcome::NotStored { status: 200 }), Delivered::Accepted);
    for status in [199, 300, 302, 404, 409, 410, 500, 503] {
        assert_eq!(after(AttemptOutcome::Whole { status }), Delivered::Free, "{status}");
    }
    assert_eq!(after(AttemptOutcome::Nothing), Delivered::Free);
    assert_eq!(judge_event(&sent, true), Delivered::InProgress);
}

#[test]
fn a_principal_is_one_value_or_none() {
    let of = |cookies: &[&str], name: &str| {
        let mut headers = HeaderMap::new();
        for c in cookies {
            headers.append("cookie", c.parse().unwrap());
        }
        principal(&headers, &Source::Cookie(name.into()))
    };
    assert_eq!(of(&["a=1; sid=x y"], "sid"), Some(b"x y".to_vec()));
    assert_eq!(of(&["sid=1; sid=1"], "sid"), Some(b"1".to_vec()));
    assert_eq!(of(&["sid=1", "sid=2"], "sid"), None);
    assert_eq!(of(&["sid="], "sid"), None);
    assert_eq!(of(&["xsid=1; sid2=1"], "sid"), None);
    let mut headers = HeaderMap::new();
    headers.append("x-user", "u".parse().unwrap());
    let source = Source::Header("x-user".into());
    assert_eq!(principal(&headers, &source), Some(b"u".to_vec()));
    headers.append("x-user", "u".parse().unwrap());
    assert_eq!(principal(&headers, &source), None);
}

#[test]
fn hashes_keep_their_parts_apart() {
    let a = hash("x", [&b"ab"[..], b"c"]);
    assert_ne!(a, hash("x", [&b"a"[..], b"bc"]));
    assert_ne!(a, hash("y", [&b"ab"[..], b"c"]));
    assert_eq!(key_hash("k").len(), 32);
}

fn media(value: &str) -> Option<(String, Option<String>)> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
    media_type(&headers).map(|m| (m.text, m.boundary))
}

#[test]
fn a_type_is_one_however_it_is_spelled() {
    for same in [
        "application/json; charset=utf-8",
        "Application/JSON;charset=UTF-8",
        "application/json ; Charset=\"utf-8\"",
        " application/json;; charset=utf-8 ;",
    ] {
        let one = ("application/json; charset=utf-8".to_owned(), None);
        assert_eq!(media(same), Some(one), "{same}");
    }
    assert_eq!(media("text/plain").unwrap().0, "text/plain", "as it was before");
    assert_eq!(media("a/b; y=1; x=\"q; r\"").unwrap().0, "a/b; x=\"q; r\"; y=1");
    assert_ne!(media("a/b; x=1"), media("a/b; x=2"));
    assert_ne!(media("a/b; x=A"), media("a/b; x=a"), "only charsets have no case");
    for none in ["", "text", "text/", "a/b; x", "a/b; x=\"", "a/b; x=1; X=2", "a/b; x=\"1\"y"] {
        assert_eq!(media(none), None, "{none}");
    }
}

#[test]
fn a_boundary_is_no_part_of_the_type() {
    let form = "multipart/form-data".to_owned();
    for said in ["multipart/form-data; boundary=b1", "Multipart/Form-Data;Boundary=\"b1\""] {
        assert_eq!(media(said), Some((form.clone(), Some("b1".into()))), "{said}");
    }
    assert_eq!(media("text/plain; boundary=b1").unwrap().1, None);
    assert_eq!(media("multipart/form-data; boundary=a; boundary=b"), None);
    let long = format!("multipart/form-data; boundary={}", "b".repeat(71));
    assert_eq!(media(&long), Some((long, None)));
}

fn fingerprint(body: &str, boundary: &str) -> Option<String> {
    let head = RequestFingerprint { head: "h".into(), body: None };
    head.with_body(body.as_bytes(), Some(boundary)).body
}

fn form(boundary: &str, parts: &[&str]) -> String {
    let parts = parts.iter().map(|p| format!("--{boundary}\r\n{p}\r\n"));
    format!("{}--{boundary}--\r\n", parts.collect::<String>())
}

#[test]
fn a_form_that_is_written_anew_is_the_same_and_another_is_not() {
    let parts = ["Content-Disposition: form-data; name=\"a\"\r\n\r\n1", "X: y\r\n\r\n\r\n--\r\n"];
    let one = fingerprint(&form("b1", &parts), "b1");
    assert_eq!(
        one,
        fingerprint(&form("----WebKitFormBoundaryX", &parts), "----WebKitFormBoundaryX")
    );
    let padded = form("b1", &parts).replace("--b1\r\n", "--b1 \t\r\n");
    assert_eq!(one, fingerprint(&padded, "b1"));
    let mut others = vec![
        fingerprint(&form("b1", &parts[..1]), "b1"),
        fingerprint(&form("b1", &[parts[1], parts[0]]), "b1"),
        fingerprint(&form("b1", &[&parts.concat()]), "b1"),
        fingerprint(&form("b1", &parts).replace("--b1--\r\n", ""), "b1"),
        fingerprint(&format!("{}more", form("b1", &parts)), "b1"),
        fingerprint(&format!("before\r\n{}", form("b1", &parts)), "b1"),
        fingerprint(&form("b1", &parts), "b2"),
        fingerprint(&form("b2", &parts), "b1"),
        // A longer word is no delimiter.
        fingerprint(&form("b1x", &parts), "b1"),
        fingerprint("", "b1"),
        one,
    ];
    others.sort();
    let count = others.len();
    others.dedup();
    assert_eq!(others.len(), count);
}

#[test]
fn what_has_no_parts_is_compared_as_before() {
    let head = RequestFingerprint { head: "h".into(), body: None };
    let plain = head.with_body(b"x=1", None);
    assert_eq!(plain, head.with_body(b"x=1", Some("b")));
    assert_eq!(plain.body, Some(hash("body", [&b"h"[..], b"x=1"])));
}
