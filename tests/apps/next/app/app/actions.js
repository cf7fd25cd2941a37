'use server'
import { redirect } from 'next/navigation'

export async function save(form) {
  redirect(`/said/${encodeURIComponent(form.get('word'))}`)
}
