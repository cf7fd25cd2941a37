//! What is refused leaves nothing behind, however much of it comes.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::promotion::{asked, deploy_preview, host};
use crate::support::{Artifact, Connection, Edge, memory_of};

/// Requests on one connection.
const ON_ONE: u64 = 500;
/// Clients that send at once.
const AT_ONCE: usize = 4;

/// An app that sleeps, with a provider's secret, and a preview behind a token.
fn edge() -> Edge {
    let edge = Edge::start();
    fs::write(edge.apps().join("secret"), "whsec_a\n").unwrap();
    fs::write(edge.apps().join("token"), "a-token-of-this-preview\n").unwrap();
    let app = "app = \"studylab\"\nhosts = [\"studylab.localhost\"]\n\
               preview_hosts = [\"{preview}.preview.studylab.localhost\"]\n\
               preview_access = { token = { file = \"token\" } }\n\
               secrets = { STRIPE_WEBHOOK_SECRET = { file = \"secret\" } }\n";
    fs::write(edge.apps().join("studylab.toml"), app).unwrap();
    // Each request says which client it is of.
    edge.reconfigure("[server]\n", "[server]\ntrusted_proxies = [\"127.0.0.1\"]\n");
    edge.json(&["reload"]);
    edge.deploy(&Artifact::new());
    deploy_preview(&edge, &Artifact::new().env("LOG", "debug"), "pr-7");
    edge
}

/// The `n`th request, of a client, with a key, a signature, a token or a host of its own.
#[track_caller]
fn refuse(connection: &mut Connection, n: u64) {
    let [_, a, b, c] = (n as u32).to_be_bytes();
    let client = format!("10.{a}.{b}.{c}");
    let (key, session) = (format!("key-{n}"), format!("vango_session=user-{n}"));
    let (token, own) = (format!("guess-number-{n}"), format!("h{n}.unknown.localhost"));
    let long = format!("/{n}{}", "a".repeat(8000));
    let signature = format!("t={n},v1={n:064x}");
    let (preview, studylab) = (host("pr-7"), "studylab.localhost");
    let (method, path, host, client, more, status) = match n % 7 {
        0 => ("POST", "/actions/submit", studylab, &*client, ("Cookie", &*session), 400),
        1 => ("POST", "/actions/submit", studylab, &*client, ("Idempotency-Key", &*key), 400),
        2 => ("POST", "//webhooks/stripe", studylab, &*client, ("Cookie", &*session), 400),
        3 => {
            ("POST", "/webhooks/stripe", studylab, &*client, ("Stripe-Signature", &*signature), 403)
        }
        4 => ("GET", "/dashboard", &*preview, &*client, ("Vango-Edge-Preview-Token", &*token), 401),
        5 => ("GET", &*long, &*own, &*client, ("Cookie", &*session), 404),
        // One client that has guessed too often.
        _ => ("GET", "/", &*preview, "192.0.2.1", ("Vango-Edge-Preview-Token", &*token), 429),
    };
    let headers = [("Host", host), ("X-Forwarded-For", client), more, ("Content-Length", "0")];
    connection.send_head(method, path, &headers);
    let answer = connection.answer().expect("an answer");
    // The lock ends after a minute, and ten guesses begin the next one.
    let is_right = answer.status == status || (status == 429 && answer.status == 401);
    assert!(is_right, "{method} {path}: {}", answer.text());
}

/// What is kept of a refusal is bounded: the memory of an edge flattens, however many clients, keys, signatures,
/// tokens and hosts it refuses. More of them with `VANGO_EDGE_TEST_REFUSALS`.
#[test]
fn any_number_of_refusals_keeps_no_more_memory() {
    let quarter = asked("VANGO_EDGE_TEST_REFUSALS", 20_000) / 4;
    let edge = edge();
    let next = AtomicU64::new(0);
    let mut seen = Vec::new();
    for part in 1..=4 {
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE {
                scope.spawn(|| {
                    let (mut connection, mut sent) = (edge.connect(), 0);
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= part * quarter {
                            break;
                        }
                        if sent == ON_ONE {
                            (connection, sent) = (edge.connect(), 0);
                        }
                        refuse(&mut connection, n);
                        sent += 1;
                    }
                });
            }
        });
        // Each thread took one number too many.
        next.store(part * quarter, Ordering::Relaxed);
        seen.push(memory_of(edge.pid()) >> 10);
    }
    println!("{} refusals: {seen:?} KiB after each quarter", 4 * quarter);
    assert_eq!(edge.ops().len(), 0, "nothing was woken");
    // The first quarter fills what is filled once: the runtime's threads and the store's buffers.
    let grown = seen[3].saturating_sub(seen[1]);
    assert!(grown < 6 * 1024, "{grown} KiB in {} refusals: {seen:?}", 2 * quarter);
}
