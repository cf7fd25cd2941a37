"""An HTTP/1.1 conformance probe: requests as bytes, and the statuses that the standard leaves room for.

Each case is a MUST of RFC 9110 or RFC 9112. `H` stands for the Host field, `5` before a body for its length. A
status of 0 is a connection that ends without an answer. Where a case has a body, what the app saw of it is
given too: a request with two readings may be refused, but if it is answered the app must have had this one.
"""

REFUSED = (400, 0)
OK = (200,)


def get(line="GET / HTTP/1.1", fields=""):
    return f"{line}\r\nH\r\n{fields}\r\n"


def post(fields, body="", line="POST / HTTP/1.1"):
    return f"{line}\r\nH\r\n{fields}\r\n{body}"


def chunked(body, fields=""):
    return post(f"Transfer-Encoding: chunked\r\n{fields}", body)


HELLO = "5\r\nhello\r\n0\r\n\r\n"

# name, section, bytes, statuses, the body that the app must have seen
CASES = [
    ("a plain request", "9112 3", get(), OK, ""),
    ("obs-fold", "9112 5.2", get(fields="X-Test: value\r\n continued\r\n"), REFUSED, None),
    ("a space before the colon", "9112 5.1", get(fields="X-Test : value\r\n"), REFUSED, None),
    ("no Host", "9112 3.2", "GET / HTTP/1.1\r\n\r\n", REFUSED, None),
    ("two Hosts", "9112 3.2", get(fields="Host: other.example\r\n"), REFUSED, None),
    ("the same Host twice", "9112 3.2", get(fields="H\r\n"), REFUSED, None),
    ("an empty Host", "9112 3.2", "GET / HTTP/1.1\r\nHost: \r\n\r\n", REFUSED, None),
    ("Host with user information", "9110 7.2", "GET / HTTP/1.1\r\nHost: user@node.localhost\r\n\r\n", REFUSED, None),
    ("Host with a path", "9110 7.2", "GET / HTTP/1.1\r\nHost: node.localhost/path\r\n\r\n", REFUSED, None),
    ("two names in Host", "9110 7.2", "GET / HTTP/1.1\r\nHost: node.localhost, other.example\r\n\r\n", REFUSED, None),
    ("another authority in the target", "9112 3.2.2", get("GET http://other.example/ HTTP/1.1"), (400, 404, 421, 0), None),
    ("an empty field name", "9112 5", get(fields=": empty\r\n"), REFUSED, None),
    ("a field without a colon", "9112 5", get(fields="NoColonHere\r\n"), REFUSED, None),
    ("a bracket in a field name", "9110 5.6.2", get(fields="Bad[Name: value\r\n"), REFUSED, None),
    ("a field name outside ASCII", "9110 5.6.2", get(fields="B\xe4d: value\r\n"), REFUSED, None),
    ("NUL in a field value", "9110 5.5", get(fields="X-Test: a\0b\r\n"), REFUSED, None),
    ("a bare CR in a field value", "9112 2.2", get(fields="X-Test: a\rb\r\n"), REFUSED, None),
    ("a control character in a field value", "9110 5.5", get(fields="X-Test: a\x01b\r\n"), (400, 0, 200), ""),
    ("CR alone ends the line", "9112 2.2", "GET / HTTP/1.1\rHost: node.localhost\r\n\r\n", REFUSED, None),
    ("space before the first field", "9112 2.2", "GET / HTTP/1.1\r\n X: y\r\nH\r\n\r\n", REFUSED, None),
    ("no target", "9112 3", "GET HTTP/1.1\r\nH\r\n\r\n", REFUSED, None),
    ("a space in the target", "9112 3.2", get("GET /pa th HTTP/1.1"), REFUSED, None),
    ("a fragment in the target", "9112 3.2", get("GET /a#b HTTP/1.1"), REFUSED, None),
    ("NUL in the target", "9112 3.2", get("GET /a\0b HTTP/1.1"), REFUSED, None),
    ("bytes outside ASCII in the target", "9112 3.2", get("GET /\xc0\xaf HTTP/1.1"), REFUSED, None),
    ("GET *", "9112 3.2.4", get("GET * HTTP/1.1"), (400, 404, 0), None),
    ("HTTP/1", "9112 2.3", get("GET / HTTP/1"), (400, 505, 0), None),
    ("HTTP/01.01", "9112 2.3", get("GET / HTTP/01.01"), (400, 505, 0), None),
    ("HTTP/ 1.1", "9112 2.3", get("GET / HTTP/ 1.1"), (400, 505, 0), None),
    ("http/1.1", "9112 2.3", get("GET / http/1.1"), (400, 505, 0), None),
    ("a length of letters", "9112 6.3", post("Content-Length: abc\r\n"), REFUSED, None),
    ("a length with a sign", "9112 6.3", post("Content-Length: +5\r\n", "hello"), REFUSED, None),
    ("a length below zero", "9112 6.3", post("Content-Length: -1\r\n"), REFUSED, None),
    ("minus zero", "9112 6.3", post("Content-Length: -0\r\n"), REFUSED, None),
    ("an octal length", "9112 6.3", post("Content-Length: 0o5\r\n", "hello"), REFUSED, None),
    ("a length in hex", "9112 6.3", post("Content-Length: 0x5\r\n", "hello"), REFUSED, None),
    ("a length with an underscore", "9112 6.3", post("Content-Length: 1_0\r\n", "helloworld"), REFUSED, None),
    ("a length with a space inside", "9112 6.3", post("Content-Length: 1 0\r\n", "hello12345"), REFUSED, None),
    ("an empty length", "9112 6.3", post("Content-Length: \r\n"), REFUSED, None),
    ("a length beyond counting", "9112 6.3", post("Content-Length: 99999999999999999999\r\n"), REFUSED, None),
    ("two lengths", "9112 6.3", post("Content-Length: 5\r\nContent-Length: 10\r\n", "helloworld"), REFUSED, None),
    ("two lengths in one field", "9112 6.3", post("Content-Length: 5, 10\r\n", "hello"), REFUSED, None),
    ("the same length twice in one field", "9110 8.6", post("Content-Length: 5, 5\r\n", "hello"), (400, 0, 200), "hello"),
    ("a length", "9112 6.2", post("Content-Length: 5\r\n", "hello"), OK, "hello"),
    ("a length of 0", "9112 6.2", post("Content-Length: 0\r\n"), OK, ""),
    ("POST without a length", "9112 6.3", post(""), OK, ""),
    ("chunked", "9112 7.1", chunked(HELLO), OK, "hello"),
    ("two chunks", "9112 7.1", chunked("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"), OK, "hello world"),
    ("no chunk but the last", "9112 7.1", chunked("0\r\n\r\n"), OK, ""),
    ("a chunk size in capitals", "9112 7.1", chunked("A\r\nhelloworld\r\n0\r\n\r\n"), OK, "helloworld"),
    ("a chunk extension", "9112 7.1.1", chunked("5;ext=value\r\nhello\r\n0\r\n\r\n"), OK, "hello"),
    ("a trailer", "9112 7.1.2", chunked("5\r\nhello\r\n0\r\nX-Checksum: abc\r\n\r\n"), OK, "hello"),
    ("a bare LF in a chunk extension", "9112 7.1.1", chunked("5;\nhello\r\n0\r\n\r\n"), REFUSED, None),
    ("a control character in a chunk extension", "9112 7.1.1", chunked("5;a=\x01\r\nhello\r\n0\r\n\r\n"), REFUSED, None),
    ("a bare CR in a chunk extension", "9112 7.1.1", chunked("5;a\rb\r\nhello\r\n0\r\n\r\n"), REFUSED, None),
    ("a chunk size with 0x", "9112 7.1", chunked("0x5\r\nhello\r\n0\r\n\r\n"), REFUSED, None),
    ("a chunk size with a sign", "9112 7.1", chunked("+5\r\nhello\r\n0\r\n\r\n"), REFUSED, None),
    ("a chunk size below zero", "9112 7.1", chunked("-1\r\nhello\r\n0\r\n\r\n"), REFUSED, None),
    ("a chunk size with an underscore", "9112 7.1", chunked("1_0\r\nhello world!!!!!\r\n0\r\n\r\n"), REFUSED, None),
    ("a space before a chunk size", "9112 7.1", chunked(" 5\r\nhello\r\n0\r\n\r\n"), REFUSED, None),
    ("a chunk size beyond counting", "9112 7.1", chunked("FFFFFFFFFFFFFFFF0\r\nhello\r\n0\r\n\r\n"), REFUSED, None),
    ("no CRLF after a chunk", "9112 7.1", chunked("5\r\nhello0\r\n\r\n"), REFUSED, None),
    ("a chunk longer than its size", "9112 7.1", chunked("5\r\nhello!!\r\n0\r\n\r\n"), REFUSED, None),
    ("a chunk size that ends with CR", "9112 7.1", chunked("5\rhello\r\n0\r\n\r\n"), REFUSED, None),
    ("an unknown coding", "9112 6.1", post("Transfer-Encoding: gzip\r\n"), (400, 501, 0), None),
    ("xchunked", "9112 6.1", post("Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n", "hello"), (400, 501, 0), None),
    ("chunked that is not last", "9112 6.3", post("Transfer-Encoding: chunked, gzip\r\n", "0\r\n\r\n"), (400, 501, 0), None),
    ("an empty coding", "9112 6.1", post("Transfer-Encoding: \r\nContent-Length: 5\r\n", "hello"), REFUSED, None),
    ("identity", "9112 6.1", post("Transfer-Encoding: identity\r\nContent-Length: 5\r\n", "hello"), (400, 501, 0), None),
    ("chunked and identity", "9112 6.1", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", HELLO), (400, 501, 0), None),
    ("a space before the coding's colon", "9112 5.1", post("Transfer-Encoding : chunked\r\nContent-Length: 5\r\n", "hello"), REFUSED, None),
    ("a vertical tab in the coding", "9112 6.1", post("Transfer-Encoding: \x0bchunked\r\nContent-Length: 5\r\n", "hello"), (400, 501, 0), None),
    ("NUL in the coding", "9112 6.1", post("Transfer-Encoding: chunked\0\r\nContent-Length: 5\r\n", "hello"), (400, 501, 0), None),
    ("a coding over HTTP/1.0", "9112 6.1", post("Transfer-Encoding: chunked\r\n", HELLO, "POST / HTTP/1.0"), REFUSED, None),
    ("Transfer_Encoding", "9112 6.1", post("Transfer_Encoding: chunked\r\nContent-Length: 5\r\n", "hello"), (400, 0, 200), "hello"),
    ("a coding and a length", "9112 6.3", chunked(HELLO, "Content-Length: 4\r\n"), (400, 0, 200), "hello"),
    ("a length in a trailer", "9110 6.5.1", chunked("5\r\nhello\r\n0\r\nContent-Length: 50\r\n\r\n"), (400, 0, 200), "hello"),
    ("Expect", "9110 10.1.1", post("Content-Length: 5\r\nExpect: 100-continue\r\n", "hello"), OK, "hello"),
    ("Expect over HTTP/1.0", "9110 10.1.1", post("Content-Length: 5\r\nExpect: 100-continue\r\n", "hello", "POST / HTTP/1.0"), OK, "hello"),
    ("Upgrade in a POST", "9110 7.8", post("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 5\r\n", "hello"), (200, 400, 426), "hello"),
    ("Upgrade to an unknown protocol", "9110 7.8", get(fields="Connection: Upgrade\r\nUpgrade: made-up/1.0\r\n"), OK, ""),
    ("Upgrade over HTTP/1.0", "9110 7.8", get("GET / HTTP/1.0", "Connection: Upgrade\r\nUpgrade: websocket\r\n"), OK, ""),
    ("HEAD with a body", "9110 9.3.2", post("Content-Length: 5\r\n", "hello", "HEAD / HTTP/1.1"), (200, 400), None),
    ("CONNECT", "9110 9.3.6", "CONNECT node.localhost:443 HTTP/1.1\r\nHost: node.localhost:443\r\n\r\n", (400, 405, 501, 0), None),
]
