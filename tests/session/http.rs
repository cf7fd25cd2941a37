//! An app's runtime service, which answers for its sessions.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use vango_edge::session::{DurableStore, HttpStore};
use vango_edge::snapshot::EnvView;

use super::suite::{Backend, view};

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mood {
    Well,
    /// It takes connections and closes them.
    Gone,
    Silent,
    /// It says this, whatever it is asked.
    Says(&'static str),
}

#[derive(Default)]
struct Shared {
    kept: HashSet<String>,
    mood: Option<Mood>,
    /// Connections of whom it says nothing to.
    open: Vec<TcpStream>,
}

pub struct Service {
    shared: Arc<Mutex<Shared>>,
    address: String,
}

/// A service that is well.
pub fn start() -> Service {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shared = Arc::new(Mutex::new(Shared { mood: Some(Mood::Well), ..Shared::default() }));
    let theirs = Arc::clone(&shared);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let shared = Arc::clone(&theirs);
            std::thread::spawn(move || answer(stream, &shared));
        }
    });
    Service { shared, address }
}

/// One request on a connection of its own. Whatever goes wrong is the client's to find.
fn answer(mut stream: TcpStream, shared: &Mutex<Shared>) {
    if shared.lock().unwrap().mood == Some(Mood::Gone) {
        return;
    }
    let mut head = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(target) = head.next() else { return };
    head.take_while(|line| !line.is_empty()).for_each(drop);
    let id = target.strip_prefix("GET /sessions/").and_then(|t| t.strip_suffix(" HTTP/1.1"));
    let mut shared = shared.lock().unwrap();
    let said = match shared.mood {
        Some(Mood::Silent) => return shared.open.push(stream),
        Some(Mood::Says(said)) => said,
        _ if id.is_some_and(|id| shared.kept.contains(id)) => "HTTP/1.1 200 OK\r\n\r\nthere",
        _ => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    };
    drop(shared);
    let _ = stream.write_all(said.as_bytes());
}

impl Service {
    fn is(&self, mood: Mood) {
        let mut shared = self.shared.lock().unwrap();
        shared.mood = Some(mood);
        shared.open.clear();
    }
}

impl Backend for Service {
    fn adapter(&self) -> Box<dyn DurableStore> {
        Box::new(HttpStore)
    }
    fn view(&self) -> Arc<EnvView> {
        view("{ kind = \"http\", path = \"/sessions/{id}\" }", &self.address)
    }
    fn keep(&self, id: &str) {
        self.shared.lock().unwrap().kept.insert(id.to_owned());
    }
    fn leave(&mut self) {
        self.is(Mood::Gone);
    }
    fn fall_silent(&mut self) {
        self.is(Mood::Silent);
    }
    fn come_back(&mut self) {
        self.is(Mood::Well);
    }
    fn secret(&self) -> String {
        "/sessions/".into()
    }
}

mod tests {
    use vango_edge::lifecycle::affinity::{FoundIn, SessionId};
    use vango_edge::session::Question;

    use super::*;

    #[tokio::test]
    async fn yes_and_no_are_answers_and_everything_else_is_none() {
        let (service, id) = (start(), SessionId::new("s-1", FoundIn::Query).unwrap());
        let view = service.view();
        let ask = Question { view: &view, target: &view.ready[0], id: &id };
        for (said, wanted) in [
            ("HTTP/1.1 200 OK\r\n\r\n", Some(true)),
            ("HTTP/1.1 204 No Content\r\n\r\n", Some(true)),
            ("HTTP/1.1 404 Not Found\r\n\r\n", Some(false)),
            ("HTTP/1.1 410 Gone\r\n\r\n", Some(false)),
            ("HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", None),
            ("HTTP/1.1 401 Unauthorized\r\n\r\n", None),
            ("HTTP/1.1 500 Internal Server Error\r\n\r\n", None),
            ("HTTP/1.1 503 Service Unavailable\r\n\r\n", None),
            ("HTTP/1.1 200", None),
            ("+PONG\r\n", None),
            ("", None),
        ] {
            service.is(Mood::Says(said));
            let answer = HttpStore.has(&ask).await;
            assert_eq!(answer.as_ref().ok(), wanted.as_ref(), "{said:?}: {answer:?}");
        }
    }
}
