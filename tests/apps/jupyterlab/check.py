"""A kernel over the REST API and its WebSocket; then the page itself answers."""
import json
import uuid

from lib import check, client, socket

token = {"Authorization": "token test"}
with client(headers=token, timeout=40) as http:
    kernel = http.post("/api/kernels", json={"name": "python3"}).json()["id"]
    said = None
    with socket(f"/api/kernels/{kernel}/channels", headers=token) as ws:
        header = {"msg_id": uuid.uuid4().hex, "session": "s", "username": "u", "msg_type": "execute_request", "version": "5.3"}
        content = {"code": "6 * 7", "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        ws.send(json.dumps({"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell", "buffers": []}))
        for _ in range(50):
            message = ws.recv(timeout=30)
            if isinstance(message, bytes):
                continue
            message = json.loads(message)
            if message["msg_type"] == "execute_result":
                said = message["content"]["data"]["text/plain"]
                break
    check("a kernel computes", said == "42", said)
    check("the kernel ends", http.delete(f"/api/kernels/{kernel}").status_code == 204)
    answer = http.put("/api/contents/x.txt", json={"type": "file", "format": "text", "content": "kept"})
    check("a file is saved", answer.status_code in (200, 201), answer)
    check("the page", "JupyterLab" in http.get("/lab").text)
