// The schemas of docs/schemas, compiled by ajv in its strict mode.
import { readFileSync, readdirSync } from 'node:fs'
import Ajv2020 from 'ajv/dist/2020.js'
import addFormats from 'ajv-formats'

export const docs = new URL('../docs/', import.meta.url)
const folder = new URL('schemas/', docs)

const ajv = new Ajv2020.default({ strict: true, allErrors: true, allowUnionTypes: true })
addFormats.default(ajv)

// By file name.
export const schemas = Object.fromEntries(
  readdirSync(folder).map((name) => [name, JSON.parse(readFileSync(new URL(name, folder), 'utf8'))]),
)
for (const [name, schema] of Object.entries(schemas)) ajv.addSchema(schema, name)

// compile throws where a schema does not keep to the standard. ref is a file, or a file and a JSON pointer.
export function compile(ref) {
  const validate = ajv.getSchema(ref)
  if (!validate) throw new Error(`${ref} is no schema`)
  return validate
}

// check throws where a value is not valid.
export function check(ref, value) {
  const validate = compile(ref)
  if (!validate(value)) throw new Error(`${ref}: ${ajv.errorsText(validate.errors)}: ${JSON.stringify(value)}`)
}
