import { Server } from '@tus/server'
import { FileStore } from '@tus/file-store'

const server = new Server({
  path: '/files',
  datastore: new FileStore({ directory: `${process.env.HOME}/files` }),
  respectForwardedHeaders: true,
})
server.listen({ host: '127.0.0.1', port: Number(process.env.PORT) })
