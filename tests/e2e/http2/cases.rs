//! The cases, in the order of RFC 9113's sections.

use super::peer::*;

/// Error codes (RFC 9113 §7).
pub mod code {
    pub const PROTOCOL: u32 = 1;
    pub const FLOW_CONTROL: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const COMPRESSION: u32 = 9;
}

/// One case.
pub struct Case {
    pub section: &'static str,
    pub what: &'static str,
    /// After the preface and the settings, but for those of §3.4.
    pub send: Vec<u8>,
    /// The stream whose end is looked at.
    pub watch: u32,
    /// What the RFC lets it end with.
    pub allowed: Vec<End>,
    /// What the edge does instead, and why that is no harm.
    pub known: Option<(End, &'static str)>,
}

impl Case {
    fn known(mut self, end: End, why: &'static str) -> Self {
        self.known = Some((end, why));
        self
    }
}

fn case(section: &'static str, what: &'static str, send: &[&[u8]], allowed: Vec<End>) -> Case {
    Case { section, what, send: send.concat(), watch: 1, allowed, known: None }
}

/// h2 0.4 has one code for frames and heads that it cannot parse.
const ONE_CODE: &str = "the connection is ended all the same, with the most general code";

/// The connection must be ended with this code. A close without a word is no conforming end here.
fn connection(code: u32) -> Vec<End> {
    vec![End::Connection(code)]
}

/// The stream must be reset with this code; any stream error may be treated as the connection's
/// (§5.4.2).
fn stream(code: u32) -> Vec<End> {
    vec![End::Stream(code), End::Connection(code)]
}

/// Malformed (§8.1.1): a stream error, or an answer 400 before it.
fn malformed() -> Vec<End> {
    vec![End::Stream(code::PROTOCOL), End::Connection(code::PROTOCOL), End::Answered(400)]
}

fn served() -> Vec<End> {
    vec![End::Answered(200)]
}

fn headers(fields: Vec<u8>) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, 1, fields)
}

fn get_with(more: &[(&str, &str)]) -> Vec<u8> {
    headers(request("GET", more))
}

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "https");
const HOST: (&str, &str) = (":authority", "studylab.localhost");
const PATH: (&str, &str) = (":path", "/debug/echo");

/// Every case.
pub fn all() -> Vec<Case> {
    let parts = [starting(), framing(), states(), frames(), settings(), windows(), messages()];
    parts.into_iter().flatten().collect()
}

/// §3.4
fn starting() -> Vec<Case> {
    let bad = connection(code::PROTOCOL).into_iter().chain([End::Closed]).collect::<Vec<_>>();
    let no_settings = [PREFACE, &frame(PING, 0, 0, [0; 8]), &get(1)].concat();
    let known = "a request is complete without the client's settings: their defaults hold";
    vec![
        case("3.4", "no preface", &[b"GET / HTTP/1.1\r\nHost: a\r\n\r\n\r\n"], bad.clone()),
        case("3.4", "a preface, and no SETTINGS first", &[&no_settings], bad)
            .known(End::Answered(200), known),
    ]
}

/// §4, §5.5
fn framing() -> Vec<Case> {
    let unknown = frame(0x16, 0xff, 0, b"whatever");
    let mut reserved = get(1);
    reserved[5] |= 0x80;
    let mut flags = get(1);
    flags[4] |= 0x40 | 0x80;
    let open = frame(HEADERS, END_STREAM, 1, request("GET", &[]));
    let large = frame(HEADERS, END_STREAM | END_HEADERS, 1, vec![0; 16 * 1024 + 1]);
    let long = "x".repeat(20_000);
    let block = request("GET", &[("x-long", &long)]);
    let cut = [
        frame(HEADERS, END_STREAM, 1, &block[..10_000]),
        frame(CONTINUATION, 0, 1, &block[10_000..20_000]),
        frame(CONTINUATION, END_HEADERS, 1, &block[20_000..]),
    ];
    vec![
        case("4.1", "a frame of an unknown kind", &[&unknown, &get(1)], served()),
        case("4.1", "the reserved bit of a stream's number", &[&reserved], served()),
        case("4.1", "flags that nobody knows", &[&flags], served()),
        case(
            "4.2",
            "DATA of the largest size",
            &[&post(1), &frame(DATA, END_STREAM, 1, vec![b'x'; 16 * 1024])],
            served(),
        ),
        case(
            "4.2",
            "DATA of one byte more",
            &[&post(1), &frame(DATA, 0, 1, vec![b'x'; 16 * 1024 + 1])],
            stream(code::FRAME_SIZE),
        ),
        case("4.2", "HEADERS of one byte more", &[&large], connection(code::FRAME_SIZE)),
        case(
            "4.3",
            "an index that no table has",
            &[&headers(vec![0xff, 0xff, 0x7f])],
            connection(code::COMPRESSION),
        )
        .known(End::Connection(code::PROTOCOL), ONE_CODE),
        case(
            "4.3",
            "a literal that ends too early",
            &[&headers(vec![0x00, 0x7f])],
            connection(code::COMPRESSION),
        )
        .known(End::Connection(code::PROTOCOL), ONE_CODE),
        case(
            "4.3",
            "a table larger than announced",
            &[&headers(vec![0x3f, 0xff, 0xff, 0xff, 0x7f])],
            connection(code::COMPRESSION),
        )
        .known(End::Connection(code::PROTOCOL), ONE_CODE),
        case(
            "4.3",
            "other HEADERS in the middle of a head",
            &[&open, &get(3)],
            connection(code::PROTOCOL),
        ),
        case("4.3", "a head in three frames", &[&cut.concat()], served()),
        case(
            "5.5",
            "an unknown frame in the middle of a head",
            &[&open, &unknown],
            connection(code::PROTOCOL),
        ),
    ]
}

/// §5.1, §5.3
fn states() -> Vec<Case> {
    let data = frame(DATA, END_STREAM, 1, b"x");
    let reset = frame(RST_STREAM, 0, 1, [0, 0, 0, 8]);
    let grow = frame(WINDOW_UPDATE, 0, 1, [0, 0, 0, 9]);
    let ended = [frame(HEADERS, END_HEADERS, 1, request("POST", &[])), data.clone()].concat();
    let closed = || [stream(code::STREAM_CLOSED), stream(code::PROTOCOL)].concat();
    // §5.1: frames on the way when a stream was reset may be dropped. Whether it was is seen by the
    // next request.
    let dropped = || [closed(), served()].concat();
    let after = |case: Case| Case { watch: 3, ..case };
    vec![
        case("5.1", "DATA on an idle stream", &[&data], connection(code::PROTOCOL)),
        case("5.1", "RST_STREAM on an idle stream", &[&reset], connection(code::PROTOCOL)),
        case("5.1", "WINDOW_UPDATE on an idle stream", &[&grow], connection(code::PROTOCOL)),
        case(
            "5.1",
            "CONTINUATION on an idle stream",
            &[&frame(CONTINUATION, END_HEADERS, 1, request("GET", &[]))],
            connection(code::PROTOCOL),
        ),
        case("5.1", "DATA after the end of its stream", &[&ended, &data], closed()),
        case("5.1", "HEADERS after the end of its stream", &[&ended, &get(1)], closed()),
        after(case(
            "5.1",
            "DATA after RST_STREAM",
            &[&post(1), &reset, &frame(DATA, 0, 1, b"x"), &get(3)],
            dropped(),
        )),
        after(case(
            "5.1",
            "HEADERS after RST_STREAM",
            &[&post(1), &reset, &get(1), &get(3)],
            dropped(),
        )),
        after(case(
            "5.1",
            "WINDOW_UPDATE after RST_STREAM",
            &[&post(1), &reset, &grow, &get(3)],
            dropped(),
        )),
        Case {
            watch: 2,
            ..case("5.1.1", "a stream with an even number", &[&get(2)], connection(code::PROTOCOL))
        },
        case(
            "5.1.1",
            "a number below one that was used",
            &[&get(3), &get(1)],
            [connection(code::PROTOCOL), connection(code::STREAM_CLOSED)].concat(),
        ),
        case(
            "5.3",
            "PRIORITY of an idle stream",
            &[&frame(PRIORITY, 0, 5, [0, 0, 0, 0, 9]), &get(1)],
            served(),
        ),
        case(
            "5.3.1",
            "PRIORITY on the connection",
            &[&frame(PRIORITY, 0, 0, [0, 0, 0, 0, 9])],
            connection(code::PROTOCOL),
        ),
        case(
            "6.3",
            "PRIORITY of four bytes",
            &[&post(1), &frame(PRIORITY, 0, 1, [0; 4])],
            stream(code::FRAME_SIZE),
        )
        .known(End::Connection(code::PROTOCOL), ONE_CODE),
    ]
}

/// §6.1, 6.2, 6.4, 6.6 to 6.8, 6.10
fn frames() -> Vec<Case> {
    let open = frame(HEADERS, END_STREAM, 1, request("GET", &[]));
    let padded = [&[4][..], b"body", &[0; 4]].concat();
    let mut head = vec![2];
    head.extend(request("GET", &[]));
    head.extend([0, 0]);
    let go_away = |stream| frame(GOAWAY, 0, stream, [0; 8]);
    let promise = [&[0, 0, 0, 2][..], &request("GET", &[])].concat();
    vec![
        case(
            "6.1",
            "DATA on the connection",
            &[&frame(DATA, 0, 0, b"x")],
            connection(code::PROTOCOL),
        ),
        case(
            "6.1",
            "DATA with padding",
            &[&post(1), &frame(DATA, END_STREAM | PADDED, 1, padded)],
            served(),
        ),
        case(
            "6.1",
            "DATA that is more padding than it has bytes",
            &[&post(1), &frame(DATA, PADDED, 1, [9, b'x'])],
            connection(code::PROTOCOL),
        ),
        case("6.2", "HEADERS on the connection", &[&get(0)], connection(code::PROTOCOL)),
        case(
            "6.2",
            "HEADERS with padding",
            &[&frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, head)],
            served(),
        ),
        case(
            "6.2",
            "HEADERS that are more padding than they have bytes",
            &[&frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, [9, 0])],
            connection(code::PROTOCOL),
        ),
        case(
            "6.2",
            "PRIORITY in the middle of a head",
            &[&open, &frame(PRIORITY, 0, 1, [0, 0, 0, 0, 9])],
            connection(code::PROTOCOL),
        ),
        case(
            "6.4",
            "RST_STREAM on the connection",
            &[&frame(RST_STREAM, 0, 0, [0; 4])],
            connection(code::PROTOCOL),
        ),
        case(
            "6.4",
            "RST_STREAM of three bytes",
            &[&post(1), &frame(RST_STREAM, 0, 1, [0; 3])],
            connection(code::FRAME_SIZE),
        )
        .known(End::Connection(code::PROTOCOL), ONE_CODE),
        case(
            "6.6",
            "PUSH_PROMISE of a client",
            &[&post(1), &frame(PUSH_PROMISE, END_HEADERS, 1, promise)],
            connection(code::PROTOCOL),
        ),
        case("6.7", "PING on a stream", &[&frame(PING, 0, 1, [0; 8])], connection(code::PROTOCOL)),
        case(
            "6.7",
            "PING of six bytes",
            &[&frame(PING, 0, 0, [0; 6])],
            connection(code::FRAME_SIZE),
        )
        .known(End::Connection(code::PROTOCOL), ONE_CODE),
        case("6.7", "an answer to no PING", &[&frame(PING, ACK, 0, [0; 8]), &get(1)], served()),
        case("6.8", "GOAWAY on a stream", &[&go_away(1)], connection(code::PROTOCOL)),
        case(
            "6.10",
            "CONTINUATION on the connection",
            &[&open, &frame(CONTINUATION, END_HEADERS, 0, [])],
            connection(code::PROTOCOL),
        ),
        case(
            "6.10",
            "CONTINUATION of another stream",
            &[&open, &frame(CONTINUATION, END_HEADERS, 3, [])],
            connection(code::PROTOCOL),
        ),
        case(
            "6.10",
            "CONTINUATION after the end of a head",
            &[&post(1), &frame(CONTINUATION, END_HEADERS, 1, [])],
            connection(code::PROTOCOL),
        ),
        case(
            "6.10",
            "DATA in the middle of a head",
            &[&open, &frame(DATA, 0, 1, b"x")],
            connection(code::PROTOCOL),
        ),
    ]
}

/// §6.5
fn settings() -> Vec<Case> {
    let one = |id: u16, value: u32| {
        frame(SETTINGS, 0, 0, [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
    };
    vec![
        case(
            "6.5",
            "SETTINGS on a stream",
            &[&frame(SETTINGS, 0, 1, [])],
            connection(code::PROTOCOL),
        ),
        case(
            "6.5",
            "an acknowledgement with a payload",
            &[&frame(SETTINGS, ACK, 0, [0; 6])],
            connection(code::FRAME_SIZE),
        )
        .known(End::Connection(code::PROTOCOL), ONE_CODE),
        case(
            "6.5",
            "SETTINGS of three bytes",
            &[&frame(SETTINGS, 0, 0, [0; 3])],
            connection(code::FRAME_SIZE),
        )
        .known(End::Connection(code::PROTOCOL), ONE_CODE),
        case("6.5.2", "ENABLE_PUSH of 2", &[&one(2, 2)], connection(code::PROTOCOL)),
        case("6.5.2", "a window of 2^31", &[&one(4, 1 << 31)], connection(code::FLOW_CONTROL))
            .known(End::Connection(code::PROTOCOL), ONE_CODE),
        case("6.5.2", "frames of 2^14 - 1", &[&one(5, (1 << 14) - 1)], connection(code::PROTOCOL)),
        case("6.5.2", "frames of 2^24", &[&one(5, 1 << 24)], connection(code::PROTOCOL)),
        case("6.5.2", "a setting that nobody knows", &[&one(0xff, 1), &get(1)], served()),
        case(
            "6.5.3",
            "a window of one byte, then a larger one",
            &[&one(4, 1), &get(1), &one(4, 65_535)],
            served(),
        ),
    ]
}

/// §6.9
fn windows() -> Vec<Case> {
    let grow = |stream, by: u32| frame(WINDOW_UPDATE, 0, stream, by.to_be_bytes());
    let wide = frame(SETTINGS, 0, 0, [&[0, 4][..], &0x7fff_ffffu32.to_be_bytes()].concat());
    let most = 0x7fff_ffff;
    vec![
        case("6.9", "the connection's window by 0", &[&grow(0, 0)], connection(code::PROTOCOL)),
        case("6.9", "a stream's window by 0", &[&post(1), &grow(1, 0)], stream(code::PROTOCOL)),
        case(
            "6.9",
            "WINDOW_UPDATE of three bytes",
            &[&frame(WINDOW_UPDATE, 0, 0, [0; 3])],
            connection(code::FRAME_SIZE),
        )
        .known(End::Connection(code::PROTOCOL), ONE_CODE),
        case(
            "6.9.1",
            "the connection's window beyond 2^31 - 1",
            &[&grow(0, most), &grow(0, most)],
            connection(code::FLOW_CONTROL),
        ),
        case(
            "6.9.1",
            "a stream's window beyond 2^31 - 1",
            &[&post(1), &grow(1, most), &grow(1, most)],
            stream(code::FLOW_CONTROL),
        ),
        case(
            "6.9.2",
            "a setting that takes a stream's window beyond 2^31 - 1",
            &[&post(1), &grow(1, 1000), &wide],
            connection(code::FLOW_CONTROL),
        ),
    ]
}

/// §8
fn messages() -> Vec<Case> {
    let head = |all: &[(&str, &str)]| headers(fields(all));
    let body = |length: &str, bytes: &[u8]| {
        let head = frame(HEADERS, END_HEADERS, 1, request("POST", &[("content-length", length)]));
        [head, frame(DATA, END_STREAM, 1, bytes)].concat()
    };
    let trailers = |flags, all: &[(&str, &str)]| {
        [post(1), frame(DATA, 0, 1, b"x"), frame(HEADERS, END_HEADERS | flags, 1, fields(all))]
            .concat()
    };
    vec![
        case("8.1", "trailers", &[&trailers(END_STREAM, &[("x-sum", "1")])], served()),
        case("8.1", "trailers that end nothing", &[&trailers(0, &[("x-sum", "1")])], malformed()),
        case(
            "8.1",
            "a pseudo field in trailers",
            &[&trailers(END_STREAM, &[(":path", "/")])],
            malformed(),
        )
        .known(End::Answered(200), "trailers of a request are not passed on to the app"),
        case("8.1.1", "a body shorter than its length", &[&body("4", b"abc")], malformed()),
        case("8.1.1", "a body longer than its length", &[&body("2", b"abc")], malformed()),
        case(
            "8.1.1",
            "two lengths",
            &[&get_with(&[("content-length", "0"), ("content-length", "1")])],
            malformed(),
        ),
        case("8.2", "a name in upper case", &[&get_with(&[("X-Upper", "1")])], malformed()),
        case("8.2.1", "a name with a space", &[&get_with(&[("x space", "1")])], malformed()),
        case("8.2.1", "a name with a line break", &[&get_with(&[("x\r\ny", "1")])], malformed()),
        case(
            "8.2.1",
            "a value with a line break",
            &[&get_with(&[("x", "1\r\ny: 2")])],
            malformed(),
        ),
        case("8.2.1", "a value with NUL", &[&get_with(&[("x", "1\0")])], malformed()),
        case("8.2.1", "a value with a space before it", &[&get_with(&[("x", " 1")])], malformed())
            .known(
                End::Answered(200),
                "to the app it is the space that HTTP/1.1 allows before a value",
            ),
        case("8.2.1", "an empty name", &[&get_with(&[("", "1")])], malformed()),
        case("8.2.2", "connection: close", &[&get_with(&[("connection", "close")])], malformed()),
        case(
            "8.2.2",
            "transfer-encoding: chunked",
            &[&get_with(&[("transfer-encoding", "chunked")])],
            malformed(),
        ),
        case("8.2.2", "te: gzip", &[&get_with(&[("te", "gzip")])], malformed()),
        case("8.2.2", "te: trailers", &[&get_with(&[("te", "trailers")])], served()),
        case(
            "8.2.3",
            "a cookie in two",
            &[&get_with(&[("cookie", "a=1"), ("cookie", "b=2")])],
            served(),
        ),
        case(
            "8.3",
            "a pseudo field that nobody knows",
            &[&head(&[METHOD, SCHEME, HOST, PATH, (":vango", "1")])],
            malformed(),
        ),
        case(
            "8.3",
            "a response's pseudo field",
            &[&head(&[METHOD, SCHEME, HOST, PATH, (":status", "200")])],
            malformed(),
        ),
        case(
            "8.3",
            "a pseudo field after others",
            &[&head(&[METHOD, SCHEME, HOST, ("x", "1"), PATH])],
            malformed(),
        ),
        case(
            "8.3",
            "a pseudo field twice",
            &[&head(&[METHOD, METHOD, SCHEME, HOST, PATH])],
            malformed(),
        ),
        case("8.3.1", "no :method", &[&head(&[SCHEME, HOST, PATH])], malformed()),
        case("8.3.1", "no :scheme", &[&head(&[METHOD, HOST, PATH])], malformed()),
        case("8.3.1", "no :path", &[&head(&[METHOD, SCHEME, HOST])], malformed()),
        case(
            "8.3.1",
            "an empty :path",
            &[&head(&[METHOD, SCHEME, HOST, (":path", "")])],
            malformed(),
        ),
        case(
            "8.3.1",
            "a :path that is none",
            &[&head(&[METHOD, SCHEME, HOST, (":path", "debug/echo")])],
            malformed(),
        ),
        case(
            "8.3.1",
            "a :path with a fragment",
            &[&head(&[METHOD, SCHEME, HOST, (":path", "/debug/echo#a")])],
            malformed(),
        ),
        case(
            "8.3.1",
            "a :path with a space",
            &[&head(&[METHOD, SCHEME, HOST, (":path", "/debug/ec ho")])],
            malformed(),
        ),
        case(
            "8.3.1",
            "userinfo in :authority",
            &[&head(&[METHOD, SCHEME, (":authority", "a@studylab.localhost"), PATH])],
            malformed(),
        ),
        case(
            "8.3.1",
            "another Host than :authority",
            &[&get_with(&[("host", "other.test")])],
            malformed(),
        ),
        case(
            "8.3.1",
            "neither :authority nor Host",
            &[&head(&[METHOD, SCHEME, PATH])],
            malformed(),
        ),
        case(
            "8.3.1",
            "Host instead of :authority",
            &[&head(&[METHOD, SCHEME, PATH, ("host", "studylab.localhost")])],
            served(),
        ),
        case(
            "8.5",
            "CONNECT with a path",
            &[&head(&[(":method", "CONNECT"), SCHEME, HOST, PATH])],
            [malformed(), vec![End::Answered(0)]].concat(),
        ),
    ]
}
