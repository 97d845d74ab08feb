// Publishes the request on stdin and prints its link.issued event.
//   NATS_URL=nats://127.0.0.1:4222 node producer.mjs < request.json
import { json } from 'node:stream/consumers'
import { DeliverPolicy, jetstream } from '@nats-io/jetstream'
import { connect } from '@nats-io/transport-node'

const request = await json(process.stdin)
const nc = await connect({ servers: process.env.NATS_URL })
const js = jetstream(nc)

// Listens before it sends, so it can't miss the answer.
const consumer = await js.consumers.get('PORTAL_EVENTS', {
  filter_subjects: 'portal.events.link.issued',
  deliver_policy: DeliverPolicy.New,
})
const events = await consumer.consume()

// JetStream's acknowledgement: the request is stored, and a worker will serve it.
await js.publish(`portal.requests.${request.source}`, JSON.stringify(request))

for await (const message of events) {
  const event = message.json()
  if (event.data.request_id !== request.id) continue
  console.log(JSON.stringify(event))
  break
}
await nc.close()
