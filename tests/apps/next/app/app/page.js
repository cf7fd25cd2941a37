import { Counter } from './counter'
import { save } from './actions'

export const dynamic = 'force-dynamic'

export default function Page() {
  return (
    <main>
      <p id="made">{new Date().toISOString()}</p>
      <Counter />
      <form action={save}><input name="word" /><button id="send">Send</button></form>
    </main>
  )
}
