import asyncio
import hashlib

from fastapi import FastAPI, UploadFile, WebSocket
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

app = FastAPI()


class Item(BaseModel):
    name: str
    price: float


@app.post("/items", status_code=201)
def add(item: Item):
    return item


@app.post("/upload")
async def upload(file: UploadFile):
    digest = hashlib.sha256()
    while part := await file.read(1 << 20):
        digest.update(part)
    return {"name": file.filename, "sha256": digest.hexdigest()}


@app.get("/events")
def events():
    async def count():
        for n in range(5):
            yield f"data: {n}\n\n"
            await asyncio.sleep(0.2)

    return StreamingResponse(count(), media_type="text/event-stream")


@app.websocket("/ws")
async def ws(socket: WebSocket):
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(text.upper())
