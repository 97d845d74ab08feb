// Package audit shows that the audit is what it was: it seals rows into a hash chain, verifies them, hands
// them out, and erases and ages what is personal beside them.
//
// A row gets a number, seq, from a sequence when it is inserted, and its transaction commits later, or never. So
// a run of numbers is final only once none of them is with a transaction that is still under way. The sealer
// reads the sequence, notes who holds the lock on audit_events that every writer takes ahead of its first number and
// keeps to its end, waits until these are through, and seals what is there up to the number that it read.
//
// The hash of a row is SHA-256 over its columns in the form of Postgres' binary COPY (row.go). A seal's hash is SHA-256
// over the seal's before it, its own fields and its rows' hashes (seal.go). docs/audit.md gives both to
// whoever wants to compute them without us.
//
// Invariants:
//
//  1. A seal covers all rows whose seq is above the last_seq of the seal before it and up to its own. What commits
//     later is above it, however long its transaction took.
//  2. A seal is durable no later than the audit.sealed row that tells its head, and that row's event follows it: whoever
//     holds a head holds one of a seal that is there.
//  3. Whoever changes, adds, moves or removes a sealed row changes the hash of its seal and all later
//     heads, so that it can't be hidden from who kept one.
//  4. A visitor is in the chain by a salted hash. With the salt gone the hash tells nothing, and the chain holds.
package audit
