// Verifies a webhook by the official library of Standard Webhooks. On stdin: {secrets, headers, body}, the
// body as a string. Ends with 0 and prints the body where one of the secrets fits, else with 1.
import { json } from 'node:stream/consumers'
import { Webhook } from 'standardwebhooks'

const { secrets, headers, body } = await json(process.stdin)
let refused = new Error('no secret is given')
for (const secret of secrets) {
  try {
    new Webhook(secret).verify(body, headers)
    console.log(body)
    process.exit(0)
  } catch (err) {
    refused = err
  }
}
console.error(refused.message)
process.exit(1)
