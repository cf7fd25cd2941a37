// The client's own way: polling first, then the upgrade; polling alone; and the socket alone.
import { io } from 'socket.io-client'
import { ca, check, sleepApp, url } from '../lib.mjs'

for (const transports of [['polling', 'websocket'], ['polling'], ['websocket']]) {
  if (process.env.STATE === 'asleep') await sleepApp()
  const socket = io(url, { transports, ca, reconnectionDelay: 200, timeout: 20000 })
  const upgraded = new Promise((done) => socket.io.engine.once('upgrade', done))
  if (transports.length === 2) await upgraded
  const answer = await socket.timeout(20000).emitWithAck('shout', 'hello')
  check(transports.join(', then '), answer === 'HELLO')
  socket.disconnect()
}
