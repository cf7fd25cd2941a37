export default async function Said({ params }) {
  const { word } = await params
  return <p id="said">{decodeURIComponent(word)}</p>
}
