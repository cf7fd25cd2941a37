//! What a page offers and never offers, what may be in it, and what an operator may give it.

use std::time::Duration;

use super::*;
use crate::clock::SeededEntropy;

fn id() -> RequestId {
    RequestId::random(&SeededEntropy::new(1))
}

fn reply(problem: Problem) -> Reply {
    Reply::refused(problem, 503, "why <b>").retry_after(Duration::from_secs(7))
}

fn shown(reply: &Reply, form: ErrorForm) -> String {
    page(reply, form, id(), Brand::plain())
}

fn branded(branding: Branding) -> String {
    page(&reply(Problem::WakeTimeout), ErrorForm::Page, id(), &Brand::new(branding))
}

const PASSING: [Problem; 8] = [
    Problem::WakeTimeout,
    Problem::WakeFailed,
    Problem::HoldQueueFull,
    Problem::NodeFull,
    Problem::Saturated,
    Problem::NotForwarded,
    Problem::ShuttingDown,
    Problem::Asleep,
];

#[test]
fn what_passes_is_followed_and_only_a_page_goes_on_by_itself() {
    for problem in PASSING {
        let page = shown(&reply(problem), ErrorForm::Page);
        assert!(page.contains("data-at=\"/.well-known/vango-edge/state\""), "{problem:?}");
        let refresh = "<noscript><meta http-equiv=\"refresh\" content=\"7\"></noscript>";
        assert!(page.contains(refresh), "{problem:?}");
        assert!(!page.contains("Send it again"), "{problem:?}");
        let form = shown(&reply(problem), ErrorForm::FormPage);
        assert!(form.contains("data-follow=\"ask\"") && form.contains("Send it again"));
        assert!(!form.contains("http-equiv"), "{problem:?}");
        assert!(form.contains("<h1>What you sent was not delivered</h1>"), "{problem:?}");
    }
}

/// Whatever its method looks like: a page must not send what is unsafe by itself.
#[test]
fn an_unsafe_request_to_a_cold_app_is_never_sent_again_by_itself() {
    for form in [ErrorForm::Page, ErrorForm::FormPage] {
        let page = shown(&reply(Problem::AppCold), form);
        assert!(page.contains("data-follow=\"ask\"") && !page.contains("http-equiv"), "{form:?}");
    }
}

#[test]
fn what_may_have_been_done_is_not_offered_again() {
    for problem in Problem::ALL.iter().copied() {
        for forwarded in [Forwarded::OutcomeUnknown, Forwarded::Answered] {
            let reply = Reply { forwarded, ..reply(problem) };
            let form = shown(&reply, ErrorForm::FormPage);
            for offer in ["Send it again", "<script", "http-equiv", "class=\"again\""] {
                assert!(!form.contains(offer), "{problem:?} {forwarded:?}: {offer}");
            }
        }
        // Nothing else is followed.
        let still = !PASSING.contains(&problem)
            && !matches!(problem, Problem::AppCold | Problem::LedgerUnavailable);
        let form = shown(&reply(problem), ErrorForm::FormPage);
        assert_eq!(form.contains("<script"), !still, "{problem:?}");
    }
}

/// A page that was asked for, and a body that was cut off on its way, are told what happened to them.
#[test]
fn only_what_may_have_been_done_is_to_be_looked_for() {
    let of = |problem, status| Reply {
        forwarded: Forwarded::OutcomeUnknown,
        ..Reply::refused(problem, status, "the reason")
    };
    let says = |reply: &Reply| shown(reply, ErrorForm::Page).contains("it could be done twice");
    assert!(says(&of(Problem::OutcomeUnknown, 502)));
    for (problem, status) in [
        (Problem::UpstreamClosed, 502),
        (Problem::UpstreamTimeout, 504),
        (Problem::ContentTooLarge, 413),
    ] {
        let reply = of(problem, status);
        assert!(
            !says(&reply) && shown(&reply, ErrorForm::Page).contains("the reason"),
            "{problem:?}"
        );
    }
}

#[test]
fn what_is_said_cannot_be_markup() {
    let page = shown(&reply(Problem::NoRoute), ErrorForm::Page);
    assert!(page.contains("why &lt;b&gt;") && !page.contains("<b>"));
    let name = "<i>\"A\" & 'B'".to_owned();
    let page = branded(Branding { name: Some(name), ..Branding::default() });
    assert!(
        page.contains("&lt;i&gt;&quot;A&quot; &amp; &#39;B&#39; is starting")
            && !page.contains("<i>")
    );
}

/// The hashes in the policy are those of what is in the page.
#[test]
fn the_policy_lets_this_script_and_this_style_run_and_no_other() {
    use base64::Engine as _;
    use sha2::{Digest as _, Sha256};
    let between = |page: &str, a: &str, b: &str| {
        let (_, rest) = page.split_once(a).unwrap();
        rest.split_once(b).unwrap().0.to_owned()
    };
    let color = Some("#8a1c7c".parse().unwrap());
    for brand in [Branding::default(), Branding { color, ..Branding::default() }] {
        let brand = Brand::new(brand);
        let page = page(&reply(Problem::WakeTimeout), ErrorForm::Page, id(), &brand);
        let [(_, policy), ..] = fields(ErrorForm::Page, &brand);
        for (name, inline) in [
            ("script-src", between(&page, "<script>", "</script>")),
            ("style-src", between(&page, "<style>", "</style>")),
        ] {
            let hash = base64::engine::general_purpose::STANDARD.encode(Sha256::digest(&inline));
            assert!(policy.contains(&format!("{name} 'sha256-{hash}'")), "{name}: {policy}");
            assert!(!inline.contains("\n  ") && !inline.contains("//"), "{name} is compact");
        }
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
        assert!(!policy.contains("frame-ancestors"), "an app in a frame goes on there");
        let [(_, policy), ..] = fields(ErrorForm::FormPage, &brand);
        assert!(policy.contains("frame-ancestors 'self'"), "{policy}");
    }
}

#[test]
fn an_operator_gives_it_a_face() {
    let svg = b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>";
    let page = branded(Branding {
        name: Some("Acme".into()),
        logo: Some(Logo::read(svg).unwrap()),
        color: Some("#ffd400".parse().unwrap()),
        contact: Some("help@acme.example".parse().unwrap()),
        template: None,
    });
    for part in [
        "<h1>Acme is starting</h1>",
        "<img src=\"data:image/svg+xml;base64,",
        "alt=\"Acme\"",
        "--accent:#ffd400;--on:#000",
        "<a href=\"mailto:help@acme.example\">help@acme.example</a>",
        "<link rel=\"icon\" href=\"data:image/svg+xml",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    assert!(shown(&reply(Problem::WakeTimeout), ErrorForm::Page).contains("href=\"data:,\""));
}

#[test]
fn what_an_operator_gives_is_checked() {
    for (bytes, why) in [(&b"GIF"[..], "no SVG"), (b"", "no SVG"), (b"\xff<svg", "no SVG")] {
        assert!(Logo::read(bytes).unwrap_err().contains(why));
    }
    let mut big = b"\x89PNG".to_vec();
    big.resize(MOST_LOGO, 0);
    assert!(Logo::read(&big).is_ok());
    big.push(0);
    assert!(Logo::read(&big).unwrap_err().contains("at most 65536"));
    for color in ["#fff", "2456d6", "#2456dg", "#2456d6;", "red"] {
        assert!(color.parse::<Color>().is_err(), "{color}");
    }
    for contact in
        ["javascript:alert(1)", "data:x", "help", "@", "https://", "a b@c", "mailto:x", "ftp://a"]
    {
        assert!(contact.parse::<Contact>().is_err(), "{contact}");
    }
    for contact in ["a@b", "mailto:a@b", "https://help.example/x", "tel:+49301234"] {
        assert!(contact.parse::<Contact>().is_ok(), "{contact}");
    }
    for name in ["", "  ", "a\nb", &"x".repeat(81)] {
        assert!(Branding::check_name(name).is_err(), "{name:?}");
    }
}

/// WCAG 2.2: 4.5 to one for what is written on it, three to one for itself on a dark page.
#[test]
fn every_color_can_be_read() {
    for step in 0..=0xffff_u32 {
        let [_, r, g, b] = (step * 257 + step % 251).to_be_bytes();
        let color: Color = format!("#{r:02x}{g:02x}{b:02x}").parse().unwrap();
        for color in [color, color.on_dark()] {
            let (on, light) = (color.on(), color.luminance() + 0.05);
            let contrast = if on == "#fff" { 1.05 / light } else { light / 0.05 };
            assert!(contrast >= 4.5, "{color:?} under {on}");
        }
        assert!((color.on_dark().luminance() + 0.05) / (0.0108 + 0.05) >= 3.0, "{color:?}");
    }
}

#[test]
fn a_template_has_places_and_says_what_is_wrong_with_it() {
    let template = Template::parse(
        b"<!doctype html><html lang=de data-p=\"{{problem}}\"><head>{{head}}<title>{{ heading }}</title>\
          </head><body>{{name}}|{{text}}|{{more}}|{{status}}|{{forwarded}}|{{request}}|{{operation}}|\
          {{retry_after}}{{follow}}{x} }} {</body></html>",
    )
    .unwrap();
    let template = Some(template);
    let page = branded(Branding { name: Some("<A>".into()), template, ..Branding::default() });
    for part in [
        "data-p=\"wake-timeout\"",
        "<title>&lt;A&gt; is starting</title>",
        "<body>&lt;A&gt;|It was asleep",
        "||503|not forwarded|",
        "||7<div class=\"follow\"",
        "{x} }} {</body></html>",
        "<meta charset=\"utf-8\">",
    ] {
        assert!(page.contains(part), "{part}: {page}");
    }
    for (text, why) in [
        ("{{head}}", "{{follow}} stands there 0 times"),
        ("{{follow}}", "{{head}} stands there 0 times"),
        ("{{head}}{{follow}}{{follow}}", "2 times"),
        ("{{head}}\n{{folow}}", "line 2: there is no {{folow}}, only head, follow"),
        ("{{head}}\n\n{{follow", "line 3: {{ has no }}"),
        ("{{head}}{{follow}}\n<SCRIPT src=x>", "line 2: no script of a template runs"),
    ] {
        let found = Template::parse(text.as_bytes()).unwrap_err();
        assert!(found.contains(why), "{text}: {found}");
    }
    assert!(Template::parse(b"\xff").unwrap_err().contains("not UTF-8"));
    let long = vec![b' '; MOST_TEMPLATE + 1];
    assert!(Template::parse(&long).unwrap_err().contains("at most 131072"));
}

#[test]
fn what_an_app_does_not_say_is_the_nodes() {
    let name = |n: &str| Branding { name: Some(n.into()), ..Branding::default() };
    let contact = Some("a@b".parse().unwrap());
    let node = Branding { contact, ..name("node") };
    let app = name("app").over(&node);
    assert_eq!((app.name.as_deref(), app.contact), (Some("app"), node.contact.clone()));
    assert_eq!(Branding::default().over(&node), node);
}
