//! Vectors that providers publish, or that an independent implementation made, and what is refused.

use super::*;
use crate::contract::{Duplicate, WhenCold};

fn of(provider: Provider) -> Webhook {
    Webhook {
        provider,
        secret: "S".into(),
        when_cold: WhenCold::Hold,
        duplicate: Duplicate::Answer,
        generic: None,
    }
}
fn heads(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}
fn check(
    provider: Provider,
    pairs: &[(&'static str, &str)],
    at: u64,
    body: &[u8],
    secrets: &[&str],
) -> Result<String, Refusal> {
    let webhook = of(provider);
    let secrets: Vec<&[u8]> = secrets.iter().map(|s| s.as_bytes()).collect();
    Signed::parse(&webhook, &heads(pairs), Wall(at * 1000))?.verify(&webhook, body, &secrets)
}

const STRIPE: &str = "0c8670ed117751cc551a20e35839447075c42800ea3cf3e8a2fbda99cd1e6edd";
const STRIPE_BODY: &[u8] = br#"{"id":"evt_1","object":"event"}"#;

fn stripe_with(header: &str, at: u64, body: &[u8], secrets: &[&str]) -> Result<String, Refusal> {
    check(Provider::Stripe, &[("stripe-signature", header)], at, body, secrets)
}

#[test]
fn stripe_form() {
    let header = format!("t=1700000000,v1={STRIPE}");
    let ok = |at| stripe_with(&header, at, STRIPE_BODY, &["whsec_test_secret"]);
    assert_eq!(ok(1_700_000_000), Ok("evt_1".into()));
    // The tolerance to the second, both ways.
    assert!(ok(1_700_000_300).is_ok() && ok(1_699_999_700).is_ok());
    assert_eq!(ok(1_700_000_301), Err(Refusal::Stale));
    assert_eq!(ok(1_699_999_699), Err(Refusal::Stale));
    let now = 1_700_000_000;
    let with = |header: &str| stripe_with(header, now, STRIPE_BODY, &["whsec_test_secret"]);
    let other = "0".repeat(64);
    for good in [
        format!("t={now},v1={other},v1={STRIPE}"),
        format!("t={now},v1={STRIPE},v1={other},v0={other}"),
        format!("v1={STRIPE}, t={now}"),
        format!("t={now},v1={}", STRIPE.to_uppercase()),
    ] {
        assert!(with(&good).is_ok(), "{good}");
    }
    for (bad, why) in [
        (format!("t={now},v0={STRIPE}"), Refusal::Missing),
        (format!("t={now}"), Refusal::Missing),
        (format!("v1={STRIPE}"), Refusal::Malformed),
        (format!("t={now},v1={}", &STRIPE[..62]), Refusal::Malformed),
        (format!("t={now},t={now},v1={STRIPE}"), Refusal::Repeated),
        (format!("t=+{now},v1={STRIPE}"), Refusal::Malformed),
        (format!("t=0{now},v1={STRIPE}"), Refusal::Wrong),
        (format!("t={now},v1={other}"), Refusal::Wrong),
        (String::new(), Refusal::Malformed),
    ] {
        assert_eq!(with(&bad), Err(why), "{bad}");
    }
    let twice = [("stripe-signature", header.as_str()), ("stripe-signature", header.as_str())];
    let secret = &["whsec_test_secret"];
    assert_eq!(check(Provider::Stripe, &twice, now, STRIPE_BODY, secret), Err(Refusal::Repeated));
    assert_eq!(check(Provider::Stripe, &[], now, b"", secret), Err(Refusal::Missing));
    let body = [STRIPE_BODY, b" "].concat();
    assert_eq!(stripe_with(&header, now, &body, secret), Err(Refusal::Wrong));
    // Rotation: any of the list.
    assert!(stripe_with(&header, now, STRIPE_BODY, &["new", "whsec_test_secret"]).is_ok());
    assert_eq!(stripe_with(&header, now, STRIPE_BODY, &[]), Err(Refusal::Wrong));
}

#[test]
fn githubs_published_vector() {
    let signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
    let pairs = [("x-hub-signature-256", signature), ("x-github-delivery", "72d3162e")];
    let secret = &["It's a Secret to Everybody"];
    let verified = check(Provider::Github, &pairs, 0, b"Hello, World!", secret);
    assert_eq!(verified, Ok("72d3162e".into()));
    let wrong = check(Provider::Github, &pairs, 0, b"Hello, World?", secret);
    assert_eq!(wrong, Err(Refusal::Wrong));
    // Without a delivery id, the body stands for the event.
    let id = check(Provider::Github, &pairs[..1], 0, b"Hello, World!", secret).unwrap();
    assert!(id.starts_with("body-") && id.len() == 37, "{id}");
    let sha1 = [("x-hub-signature-256", &signature[7..])];
    assert_eq!(check(Provider::Github, &sha1, 0, b"", secret), Err(Refusal::Malformed));
}

/// From the specification's own libraries' `test_sign`; v1a from Python's `cryptography`, the
/// private key being the bytes 0 to 31.
#[test]
fn standard_webhooks_vectors() {
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = br#"{"test": 2432232314}"#;
    const AT: u64 = 1_614_265_330;
    const V1: &str = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
    const V1A: &str = "v1a,yoUrgEkc12aGqm0n4Sydmdz55xJfTz4AsAgieHFjmkR7LJtqVCZOQYzvvHjI5kAey\
                       +r4iaBGxTFRrl2iBQxtDQ==";
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const PUBLIC: &str = "whpk_A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=";
    let with = |id: &str, list: &str, secret: &str, at: u64| {
        let stamp = AT.to_string();
        let pairs = [
            ("webhook-id", id),
            ("webhook-timestamp", stamp.as_str()),
            ("webhook-signature", list),
        ];
        check(Provider::StandardWebhooks, &pairs, at, BODY, &[secret])
    };
    assert_eq!(with(ID, V1, SECRET, AT), Ok(ID.into()));
    assert_eq!(with(ID, V1, &SECRET[6..], AT), Ok(ID.into()));
    assert_eq!(with(ID, V1A, PUBLIC, AT), Ok(ID.into()));
    assert!(with(ID, &format!("v2,x {V1} {V1A}"), PUBLIC, AT).is_ok());
    // Neither kind of key answers for the other kind of signature.
    assert_eq!(with(ID, V1A, SECRET, AT), Err(Refusal::Wrong));
    assert_eq!(with(ID, V1, PUBLIC, AT), Err(Refusal::Wrong));
    assert_eq!(with("msg_other", V1, SECRET, AT), Err(Refusal::Wrong));
    assert_eq!(with("msg.p5j", V1, SECRET, AT), Err(Refusal::Malformed));
    assert_eq!(with(ID, "v1", SECRET, AT), Err(Refusal::Malformed));
    assert_eq!(with(ID, "v3,AAAA", SECRET, AT), Err(Refusal::Missing));
    assert_eq!(with(ID, V1, SECRET, AT + 301), Err(Refusal::Stale));
    // The one that the specification's own libraries are tested with, in every language.
    let published = [
        ("webhook-id", "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk"),
        ("webhook-timestamp", "1649367553"),
        ("webhook-signature", "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="),
    ];
    let body = br#"{"email":"test@example.com","username":"test_user"}"#;
    let secret = &["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"];
    let verified = check(Provider::StandardWebhooks, &published, 1_649_367_553, body, secret);
    assert_eq!(verified, Ok(published[0].1.into()));
    let stamp = AT.to_string();
    let svix = [("svix-id", ID), ("svix-timestamp", stamp.as_str()), ("svix-signature", V1)];
    assert_eq!(check(Provider::StandardWebhooks, &svix, AT, BODY, &[SECRET]), Ok(ID.into()));
}

/// Slack's is the example of its documentation; Shopify's and the JSON one are from Python's
/// `hmac`.
#[test]
fn slack_and_shopify_vectors() {
    let body = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow\
        &channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner\
        &command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands\
        %2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.\
        47445629121.803a0bc887a14d10d2c447fce8b6703c";
    let mine = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
    let slack = |at: &str, now: u64, signature: &str, body: &[u8], secret: &str| {
        let pairs = [("x-slack-signature", signature), ("x-slack-request-timestamp", at)];
        check(Provider::Slack, &pairs, now, body, &[secret])
    };
    let secret = "8f742231b10e8888abcd99yyyzzz85a5";
    let id = slack("1531420618", 1_531_420_618, mine, body, secret).unwrap();
    assert!(id.starts_with("body-"));
    assert_eq!(slack("1531420618", 1_531_420_919, mine, body, secret), Err(Refusal::Stale));
    let json = br#"{"event_id":"Ev1","type":"event_callback"}"#;
    let signature = "v0=06a8bcf2ad633a9e7ad6b1797a10ecda1aa81a0cbc2e77e204706fcaed8cea31";
    let event = slack("1700000000", 1_700_000_000, signature, json, "slack_secret");
    assert_eq!(event, Ok("Ev1".into()));

    let signature = "HkXBngMRo/tlppMNoopcz4KNfS22Q5FtteEt7Di9wOo=";
    let pairs = [("x-shopify-hmac-sha256", signature), ("x-shopify-webhook-id", "b54557e4")];
    let shopify = check(Provider::Shopify, &pairs, 0, br#"{"id":1}"#, &["shopify_secret"]);
    assert_eq!(shopify, Ok("b54557e4".into()));
    let cut = [("x-shopify-hmac-sha256", &signature[..43])];
    assert_eq!(check(Provider::Shopify, &cut, 0, b"", &["s"]), Err(Refusal::Malformed));
}

#[test]
fn bytes_are_checked_and_not_text() {
    // Not UTF-8, and what gzip makes of something: signed and checked as they are.
    for body in [&b"\xff\xfe\0"[..], b"\x1f\x8b\x08\0\0\0\0\0\0\x03", b""] {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"s").unwrap();
        mac.update(body);
        let hex =
            mac.finalize().into_bytes().iter().fold(String::new(), |s, b| format!("{s}{b:02x}"));
        let header = format!("sha256={hex}");
        let pairs = [("x-hub-signature-256", header.as_str())];
        assert!(check(Provider::Github, &pairs, 0, body, &["s"]).is_ok(), "{body:?}");
    }
}

#[test]
fn a_generic_hmac_is_what_its_contract_says() {
    let webhook = Webhook {
        generic: Some(GenericHmac {
            header: "x-sig".into(),
            prefix: String::new(),
            encoding: Encoding::Hex,
            signed: "{timestamp}.{body}".into(),
            timestamp: Some("x-at".into()),
            tolerance: TOLERANCE,
            handshake: None,
            event: EventId::Json("/id".into()),
            deadline: Duration::from_secs(10),
        }),
        ..of(Provider::GenericHmac)
    };
    let headers = heads(&[("x-sig", STRIPE), ("x-at", "1700000000")]);
    let signed = Signed::parse(&webhook, &headers, Wall(1_700_000_000_000)).unwrap();
    let verified = signed.verify(&webhook, STRIPE_BODY, &[b"whsec_test_secret"]);
    assert_eq!(verified, Ok("evt_1".into()));
}

#[test]
fn no_hold_outlasts_its_provider() {
    use Provider as P;
    for provider in [P::Stripe, P::StandardWebhooks, P::Github, P::Shopify, P::Slack] {
        let webhook = of(provider);
        assert!(hold_limit(&webhook) < provider_rules(&webhook).waits);
    }
    assert!(!provider_rules(&of(P::Github)).redelivers);
}
