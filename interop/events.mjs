// Reads messages of portal.events.> on stdin, a JSON array of {headers, body}, parses each by the official
// CloudEvents SDK, holds it against its schema, and prints the ids by type.
import { json } from 'node:stream/consumers'
import { HTTP } from 'cloudevents'
import { check } from './schemas.mjs'

const ids = {}
for (const { headers, body } of await json(process.stdin)) {
  const event = HTTP.toEvent({ headers, body })
  event.validate()
  check('event.schema.json', JSON.parse(body))
  check(`event.schema.json#/$defs/${event.type.replace(/^latchkey\./, '')}`, event.toJSON())
  ;(ids[event.type] ??= []).push(event.id)
}
console.log(JSON.stringify(ids))
