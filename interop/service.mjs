// Sends the request on stdin to the micro service, asks what became of the link, and prints all that the
// service answers, to the standard $SRV verbs as well.
//   NATS_URL=nats://127.0.0.1:4222 node service.mjs < request.json
import { text } from 'node:stream/consumers'
import { connect } from '@nats-io/transport-node'

const nc = await connect({ servers: process.env.NATS_URL })

// An error comes in the headers; the body is empty then.
async function ask(subject, body) {
  const answer = await nc.request(subject, body, { timeout: 30_000 })
  const code = answer.headers?.get('Nats-Service-Error-Code')
  if (code) return { code, error: answer.headers.get('Nats-Service-Error') }
  return answer.json()
}

const created = await ask('portal.links.create', await text(process.stdin))
console.log(JSON.stringify({
  created,
  status: await ask('portal.links.get', JSON.stringify({ id: created.request_id })),
  refused: await ask('portal.links.create', '{"id": "in_1PqR"}'),
  missing: await ask('portal.links.get', '{"id": "in_nobody"}'),
  campaigns: await ask('portal.campaigns.list', '{}'),
  noCampaign: await ask('portal.campaigns.get', '{"campaign": "nobody"}'),
  revoked: await ask('portal.links.revoke', JSON.stringify({ link_id: created.link_id, by: 'service.mjs' })),
  ping: await ask('$SRV.PING.latchkey'),
  info: await ask('$SRV.INFO.latchkey'),
  stats: await ask('$SRV.STATS.latchkey'),
}))
await nc.close()
