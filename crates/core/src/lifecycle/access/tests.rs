//! Who may pass to a preview, and how wrong tokens are counted.

use super::*;
use crate::clock::SeededEntropy;
use crate::id::RequestId;

const NOW: Wall = Wall(1_700_000_000_000);

const PAGE: (&str, &str) = ("accept", "text/html,*/*;q=0.8");

fn ask(tokens: &[&str], target: &str, headers: &[(&'static str, &str)], now: Wall) -> Access {
    ask_by("GET", tokens, target, headers, now)
}

fn ask_by(
    method: &str,
    tokens: &[&str],
    target: &str,
    headers: &[(&'static str, &str)],
    now: Wall,
) -> Access {
    let mut request = http::Request::builder().method(method).header("host", "pr-7.preview.test");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let id = RequestId::random(&SeededEntropy::new(1));
    let facts = Facts::parse(&parts, target.as_bytes(), id, Mono(0)).unwrap();
    let tokens: Vec<_> = tokens.iter().map(|t| t.as_bytes().to_vec()).collect();
    check(&tokens, &facts, &parts.headers, None, now)
}

#[test]
fn without_tokens_all_requests_pass_and_with_one_only_those_that_show_it() {
    assert_eq!(ask(&[], "/", &[], NOW), Access::Pass);
    assert!(
        matches!(ask(&["s3cret"], "/", &[], NOW), Access::Stop(Stop { answer: Answer::Reply(r), guess: None, .. }) if r.status == 401)
    );
    for wrong in ["", "s3cre", "s3crets", "S3cret"] {
        let verdict = ask(&["s3cret"], "/", &[(HEADER, wrong)], NOW);
        assert!(matches!(verdict, Access::Stop(Stop { guess: Some(Guess::Token), .. })), "{wrong}");
    }
    assert_eq!(ask(&["old", "s3cret"], "/", &[(HEADER, "s3cret")], NOW), Access::Pass);
}

#[test]
fn the_query_becomes_a_cookie_that_is_good_for_this_host_and_time_only() {
    let verdict = ask(&["s3 cret"], "/a?x=1&vango_preview=s3%20cret&y=2", &[PAGE], NOW);
    let Access::Stop(Stop { answer: Answer::Welcome { location, cookie }, .. }) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(location, "/a?x=1&y=2");
    assert!(!cookie.contains("s3") && cookie.contains("HttpOnly; SameSite=Lax"), "{cookie}");
    let pair = cookie.split(';').next().unwrap();
    let with = |tokens: &[&str], pair: &str, now| ask(tokens, "/", &[("cookie", pair)], now);
    let also = format!("other=1; {pair}");
    assert_eq!(with(&["s3 cret"], &also, NOW), Access::Pass);
    assert!(matches!(
        with(&["rotated"], pair, NOW),
        Access::Stop(Stop { guess: Some(Guess::Cookie), .. })
    ));
    let later = Wall(NOW.0 + COOKIE_AGE * 1000);
    assert!(matches!(
        with(&["s3 cret"], pair, later),
        Access::Stop(Stop { shown: "none shown", .. })
    ));
    let forged = pair.replace(&(NOW.0 / 1000 + COOKIE_AGE).to_string(), "99999999999");
    assert!(matches!(
        with(&["s3 cret"], &forged, NOW),
        Access::Stop(Stop { shown: "none shown", .. })
    ));
    let other = proof(b"s3 cret", "pr-8.preview.test", NOW.0 / 1000 + 10);
    let other = format!("{COOKIE}={}.{other}", NOW.0 / 1000 + 10);
    assert!(matches!(
        with(&["s3 cret"], &other, NOW),
        Access::Stop(Stop { guess: Some(Guess::Cookie), .. })
    ));
}

#[test]
fn only_a_navigation_is_sent_on_and_everything_else_goes_on_without_the_token() {
    let fetched = ("sec-fetch-mode", "cors");
    for (method, headers) in [
        ("POST", &[][..]),
        ("POST", &[PAGE]),
        ("PUT", &[]),
        ("GET", &[]),
        ("GET", &[PAGE, fetched]),
        ("HEAD", &[PAGE]),
    ] {
        for (target, rest) in [
            ("/hook?vango_preview=t", None),
            ("/hook?a=1&vango_preview=t&b=%20", Some("a=1&b=%20".to_owned())),
        ] {
            let verdict = ask_by(method, &["t"], target, headers, NOW);
            assert_eq!(verdict, Access::PassWith { query: rest }, "{method} {target}");
        }
        let wrong = ask_by(method, &["t"], "/hook?vango_preview=x", headers, NOW);
        assert!(matches!(wrong, Access::Stop(Stop { guess: Some(Guess::Token), .. })), "{method}");
    }
}

#[test]
fn a_preflight_passes_and_nothing_that_only_looks_like_one() {
    let origin = ("origin", "https://app.example");
    let asks = ("access-control-request-method", "POST");
    let preflight = |method, headers: &[_]| ask_by(method, &["t"], "/", headers, NOW);
    assert_eq!(preflight("OPTIONS", &[origin, asks]), Access::Pass);
    for (method, headers) in [
        ("OPTIONS", &[][..]),
        ("OPTIONS", &[origin]),
        ("OPTIONS", &[asks]),
        ("OPTIONS", &[origin, asks, ("content-length", "1")]),
        ("OPTIONS", &[origin, asks, ("x-http-method-override", "POST")]),
        ("OPTIONS", &[origin, asks, ("x.http.method.override", "GET")]),
        ("GET", &[origin, asks]),
        ("POST", &[origin, asks]),
    ] {
        let verdict = preflight(method, headers);
        assert!(
            matches!(verdict, Access::Stop(Stop { shown: "none shown", .. })),
            "{method} {headers:?}: {verdict:?}"
        );
    }
}

#[test]
fn it_leads_to_no_other_host() {
    let verdict = ask(&["t"], "//evil.example/?vango_preview=t", &[PAGE], NOW);
    let Access::Stop(Stop { answer: Answer::Welcome { location, .. }, .. }) = verdict else {
        panic!("{verdict:?}")
    };
    assert_eq!(location, "/evil.example/");
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
const START: Mono = Mono(10_000_000_000);

#[test]
fn wrong_tokens_are_counted_by_client_and_forgotten() {
    let attempts = WrongTokens::default();
    let a = ip("2001:db8::1");
    for _ in 0..ATTEMPTS {
        assert_eq!(attempts.wait(a, START), None);
        attempts.count(a, None, START);
    }
    let later = START + Duration::from_secs(10);
    assert_eq!(attempts.wait(a, later), Some(Duration::from_secs(50)));
    assert!(attempts.wait(ip("2001:db8::ffff:2"), START).is_some(), "of the same /64");
    assert!(attempts.wait(ip("2001:db8:0:1::1"), START).is_none(), "of another");
    assert_eq!(attempts.wait(a, START + WINDOW), None);
    attempts.count(a, None, START + WINDOW);
    assert_eq!(attempts.wait(a, START + WINDOW), None, "one attempt only");
}

#[test]
fn a_cookie_that_is_sent_again_is_one_guess_and_another_is_another() {
    let attempts = WrongTokens::default();
    for _ in 0..1000 {
        attempts.count(ip("192.0.2.1"), Some("1700000000.ab"), START);
    }
    assert_eq!(attempts.wait(ip("192.0.2.1"), START), None);
    for n in 0..ATTEMPTS {
        attempts.count(ip("192.0.2.1"), Some(&n.to_string()), START);
    }
    assert!(attempts.wait(ip("192.0.2.1"), START).is_some());
}

#[test]
fn no_client_is_locked_by_others_and_what_is_kept_is_bounded() {
    let attempts = WrongTokens::default();
    for n in 0..200_000_u32 {
        let from = IpAddr::V4((0x0a00_0000 + n / 9).into());
        assert_eq!(attempts.wait(from, START), None, "{from}");
        attempts.count(from, None, START);
    }
    let counts = attempts.counts();
    assert!(counts.by_client.len() <= CLIENTS && counts.first.len() <= CLIENTS);
}
