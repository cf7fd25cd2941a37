const { createServer } = require('http')
const { Server } = require('socket.io')

const http = createServer((req, res) => res.end('ok'))
const io = new Server(http)
io.on('connection', (socket) => {
  socket.on('shout', (word, done) => done(word.toUpperCase()))
})
http.listen(process.env.PORT, '127.0.0.1')
