"""What schemathesis is told beside the document: a body of this type is bytes. scripts/openapi names this file."""
import schemathesis

schemathesis.serializer.alias("application/x-tar", "application/octet-stream")
