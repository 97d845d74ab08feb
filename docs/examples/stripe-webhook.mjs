// Turns Stripe's invoice.payment_failed into a request for a link. See docs/integrations.md.
//
//	LATCHKEY_URL            the internal server, such as http://127.0.0.1:9090
//	LATCHKEY_TOKEN          of 'worker tokens new --name dunning --scope create --source dunning'
//	STRIPE_WEBHOOK_SECRET   the endpoint's, whsec_…
//	PORT                    8787 if not set
import { createHmac, timingSafeEqual } from 'node:crypto';
import { createServer } from 'node:http';

const { LATCHKEY_URL, LATCHKEY_TOKEN, STRIPE_WEBHOOK_SECRET, PORT = '8787' } = process.env;
if (!LATCHKEY_URL || !LATCHKEY_TOKEN || !STRIPE_WEBHOOK_SECRET) {
  throw new Error('set LATCHKEY_URL, LATCHKEY_TOKEN and STRIPE_WEBHOOK_SECRET');
}
const maxBody = 1 << 20;
const tolerance = 300; // seconds, as Stripe's own libraries have it

// signed tells whether Stripe signed the body, byte for byte, within the last five minutes.
function signed(body, header = '') {
  const parts = header.split(',').map((part) => part.trim().split('='));
  const time = parts.find(([name]) => name === 't')?.[1];
  if (!/^\d+$/.test(time ?? '') || Math.abs(Date.now() / 1000 - Number(time)) > tolerance) return false;
  const want = createHmac('sha256', STRIPE_WEBHOOK_SECRET).update(`${time}.`).update(body).digest();
  return parts.some(([name, hex]) => {
    const got = Buffer.from(name === 'v1' ? hex ?? '' : '', 'hex');
    return got.length === want.length && timingSafeEqual(got, want);
  });
}

// request is the link's: its id is the occasion, so that an event delivered twice makes one link.
function request(invoice) {
  return {
    id: `${invoice.id}-attempt-${invoice.attempt_count}`,
    source: 'dunning',
    session: { customer: invoice.customer, flow_data: { type: 'payment_method_update' } },
    metadata: { invoice: invoice.id },
    // With SMTP_URL set, Latchkey sends the mail as well:
    // deliver: [{ channel: 'email', to: invoice.customer_email, template: 'payment_failed' }],
  };
}

async function handle(body, signature) {
  if (!signed(body, signature)) return [400, 'not signed by Stripe'];
  const event = JSON.parse(body);
  if (event.type !== 'invoice.payment_failed') return [200, 'not for us'];
  const answer = await fetch(`${LATCHKEY_URL}/v1/links`, {
    method: 'POST',
    headers: { authorization: `Bearer ${LATCHKEY_TOKEN}`, 'content-type': 'application/json' },
    body: JSON.stringify(request(event.data.object)),
    signal: AbortSignal.timeout(10_000),
  });
  const result = await answer.json();
  if (answer.ok) return [200, `link ${result.link_id}`];
  console.error(event.id, result.status, result.code, result.detail);
  const never = [400, 409, 413, 422].includes(answer.status); // a repeat would get the same
  return never ? [200, `rejected: ${result.code}`] : [503, 'later'];
}

createServer(async (req, res) => {
  try {
    const chunks = [];
    let size = 0;
    for await (const chunk of req) {
      if ((size += chunk.length) > maxBody) throw new Error('the body is too large');
      chunks.push(chunk);
    }
    const [status, text] = await handle(Buffer.concat(chunks), req.headers['stripe-signature']);
    res.writeHead(status, { 'content-type': 'text/plain' }).end(`${text}\n`);
  } catch (err) {
    console.error(err.message);
    res.writeHead(503, { 'content-type': 'text/plain' }).end('later\n'); // Stripe delivers it again
  }
}).listen(Number(PORT), '127.0.0.1');
