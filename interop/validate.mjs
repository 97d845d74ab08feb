// Holds the documents of docs/ against the official validators: asyncapi.yaml by AsyncAPI's parser, the JSON
// Schemas and their examples by ajv, openapi.yaml by OpenAPI's own schemas. Prints what asyncapi.yaml
// lists, as JSON.
import { existsSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Parser, fromFile } from '@asyncapi/parser'
import { Validator } from '@seriousme/openapi-schema-validator'
import { check, compile, docs, schemas } from './schemas.mjs'

for (const [name, schema] of Object.entries(schemas)) {
  for (const def of Object.keys(schema.$defs)) compile(`${name}#/$defs/${def}`)
  for (const example of schema.examples ?? []) check(name, example)
}

const asyncapi = await fromFile(new Parser(), fileURLToPath(new URL('asyncapi.yaml', docs))).parse()
const problems = asyncapi.diagnostics.filter((d) => d.code !== 'asyncapi-latest-version')
if (!asyncapi.document || problems.length > 0) {
  throw new Error(problems.map((d) => `asyncapi.yaml: ${d.path.join('.')}: ${d.message}`).join('\n'))
}

const openapi = fileURLToPath(new URL('openapi.yaml', docs))
if (existsSync(openapi)) {
  const result = await new Validator().validate(openapi)
  if (!result.valid) throw new Error(`openapi.yaml: ${JSON.stringify(result.errors, null, 1)}`)
}

const channels = {}
for (const channel of asyncapi.document.channels().all()) {
  if (!channel.address()) continue // a requester's inbox
  channels[channel.address()] = {
    parameters: Object.fromEntries(channel.parameters().all().map((p) => [p.id(), p.json().enum ?? []])),
    messages: channel.messages().all().map((m) => m.id()),
    operations: channel.operations().all().map((o) => `${o.action()}${o.reply() ? ' and reply' : ''}`),
  }
}
console.log(JSON.stringify({ schemas: Object.keys(schemas), openapi: existsSync(openapi), channels }))
