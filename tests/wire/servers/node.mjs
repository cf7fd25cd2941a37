// Node's own HTTP server. Answers what it saw as JSON, and prints a line for each request it carried out.
import { createServer } from 'node:http'

const server = createServer((request, response) => {
  const chunks = []
  request.on('data', (chunk) => chunks.push(chunk))
  request.on('end', () => {
    const seen = {
      server: 'node',
      method: request.method,
      target: request.url,
      headers: Object.fromEntries(pairs(request.rawHeaders)),
      body: Buffer.concat(chunks).toString('hex'),
      trailers: request.trailers,
    }
    console.log(JSON.stringify({ method: seen.method, target: seen.target }))
    const path = request.url.split('?')[0]
    if (path === '/stream') {
      response.write('one,')
      setTimeout(() => response.end('two'), 50)
    } else if (path === '/early') {
      response.writeEarlyHints({ link: '</a.css>; rel=preload' })
      response.end(JSON.stringify(seen))
    } else if (path === '/date') {
      response.setHeader('Date', 'Mon, 02 Jan 2006 15:04:05 GMT')
      response.end(JSON.stringify(seen))
    } else if (path === '/page') {
      response.setHeader('Content-Type', 'text/html')
      response.end(page)
    } else {
      response.setHeader('Content-Type', 'application/json')
      response.end(JSON.stringify(seen))
    }
  })
})
// A keep-alive that ends so soon that a pooled connection is often just closing.
server.keepAliveTimeout = Number(process.env.KEEP_ALIVE_MS ?? 5000)
server.listen(Number(process.env.PORT), '127.0.0.1')

// What a browser's own fetch() gets, as the page's text.
const page = `<!doctype html><title>wire</title><pre id=out></pre><script type=module>
const out = []
out.push('get ' + (await fetch('/a%e8?x=%7E').then((r) => r.json())).target)
out.push('post ' + (await fetch('/form', { method: 'POST', body: new URLSearchParams({ a: '1' }) }).then((r) => r.json())).body)
const big = 'x'.repeat(300000)
out.push('upload ' + (await fetch('/up', { method: 'POST', body: big }).then((r) => r.json())).body.length / 2)
out.push('stream ' + await fetch('/stream').then((r) => r.text()))
document.getElementById('out').textContent = out.join('\\n')
document.title = 'done'
</script>`

function* pairs(raw) {
  const all = new Map()
  for (let i = 0; i < raw.length; i += 2) {
    const name = raw[i].toLowerCase()
    all.set(name, [...(all.get(name) ?? []), raw[i + 1]])
  }
  yield* all
}
