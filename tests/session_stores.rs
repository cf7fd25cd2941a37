//! Every adapter of apps' session stores against one suite: a real Redis on a socket file, over TCP
//! with a password, and over TLS, and an app's runtime service over HTTP. Embedded apps are asked over
//! HTTP too: whatever they keep sessions in is their own.

mod session {
    pub mod http;
    pub mod redis;
    pub mod suite;
}

use std::process::Command;

use session::{http, redis, suite};

macro_rules! case {
    ([$(#[$mark:meta])?] $open:expr, $case:ident) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        $(#[$mark])?
        async fn $case() {
            super::suite::$case($open).await;
        }
    };
}

/// Declares one test for each case of the suite. `$open` makes a backend.
macro_rules! suite {
    ($name:ident: $open:expr $(, $mark:meta)?) => {
        mod $name {
            case! { [$(#[$mark])?] $open, what_is_there_is_there_and_nothing_else_is }
            case! { [$(#[$mark])?] $open, one_that_is_away_is_no_answer_and_is_asked_again_when_it_is_back }
            case! { [$(#[$mark])?] $open, one_that_is_silent_costs_the_deadline_and_no_more }
            case! { [$(#[$mark])?] $open, after_three_failures_no_caller_waits_until_one_finds_it_back }
            case! { [$(#[$mark])?] $open, a_question_that_is_given_up_harms_no_other }
            case! { [$(#[$mark])?] $open, many_questions_at_once_get_their_own_answers }
        }
    };
}

suite! { redis_on_a_socket_file: super::redis::on_a_socket_file() }
suite! { redis_with_a_password: super::redis::with_a_password() }
suite! { redis_over_tls: super::redis::over_tls(), ignore = "run by redis_over_tls_too" }
suite! { http_service: super::http::start() }

/// The crate trusts whom the system trusts, which a process says in its environment.
#[test]
fn redis_over_tls_too() {
    let certificates = redis::certificates();
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["redis_over_tls::", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", certificates.path().join("ca.pem"))
        .env(redis::CERTIFICATES, certificates.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let errors = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success() && said.contains("6 passed"), "{said}\n{errors}");
    // And no other certificate.
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["redis_over_tls::what_is_there", "--ignored"])
        .env("SSL_CERT_FILE", certificates.path().join("nobody.pem"))
        .env(redis::CERTIFICATES, certificates.path())
        .output()
        .unwrap();
    assert!(!ran.status.success(), "a certificate that no authority vouches for is refused");
}
