//! OTLP's messages for traces, as OpenTelemetry's own crate has them, and how attributes are made.

pub use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess as PartialSuccess, ExportTraceServiceRequest as ExportRequest,
    ExportTraceServiceResponse as ExportResponse,
};
pub use opentelemetry_proto::tonic::common::v1::any_value::Value;
pub use opentelemetry_proto::tonic::common::v1::{
    AnyValue, InstrumentationScope as Scope, KeyValue,
};
pub use opentelemetry_proto::tonic::resource::v1::Resource;
pub use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode,
};

/// What the edge does for a request.
pub const INTERNAL: i32 = SpanKind::Internal as i32;
pub const SERVER: i32 = SpanKind::Server as i32;
/// It failed.
pub const ERROR: i32 = StatusCode::Error as i32;

/// An attribute that is text.
pub fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

/// An attribute that is a number.
pub fn int(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    let value = Some(AnyValue { value: Some(value) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    /// What the `opentelemetry-proto` package for Python, 1.45.2, writes for the same request.
    const WRITTEN: &str = "0ad1010a1e0a1c0a0c736572766963652e6e616d65120c0a0a76616e676f2d656467651\
        2ae010a0f0a0a76616e676f2d6564676512013112720a10000102030405060708090a0b0c0d0e0f1208000102030\
        4050607220808090a0b0c0d0e0f2a0347455430023900002a36fe9c97174140423936fe9c97174a200a196874747\
        02e726573706f6e73652e7374617475735f636f6465120318f7037a0f120b77616b652d6661696c656418021a276\
        8747470733a2f2f6f70656e74656c656d657472792e696f2f736368656d61732f312e33372e30";

    fn bytes(digits: &str) -> Vec<u8> {
        hex::decode(digits).unwrap()
    }

    #[test]
    fn the_bytes_are_those_that_opentelemetrys_own_code_writes() {
        let span = Span {
            trace_id: (0..16).collect(),
            span_id: (0..8).collect(),
            parent_span_id: (8..16).collect(),
            name: "GET".into(),
            kind: SERVER,
            start_time_unix_nano: 1_700_000_000_000_000_000,
            end_time_unix_nano: 1_700_000_000_001_000_000,
            attributes: vec![int("http.response.status_code", 503)],
            status: Some(Status { message: "wake-failed".into(), code: ERROR }),
            ..Span::default()
        };
        let scope = Scope { name: "vango-edge".into(), version: "1".into(), ..Scope::default() };
        let request = ExportRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(Resource {
                    attributes: vec![text("service.name", "vango-edge")],
                    ..Resource::default()
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope),
                    spans: vec![span],
                    schema_url: "https://opentelemetry.io/schemas/1.37.0".into(),
                }],
                ..ResourceSpans::default()
            }],
        };
        assert_eq!(request.encode_to_vec(), bytes(WRITTEN));
        assert_eq!(ExportRequest::decode(&*bytes(WRITTEN)).unwrap(), request);
        let partly = ExportResponse::decode(&*bytes("0a0c08031208746f6f206d616e79")).unwrap();
        let said = partly.partial_success.unwrap();
        assert_eq!((said.rejected_spans, said.error_message.as_str()), (3, "too many"));
    }
}
