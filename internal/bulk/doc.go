// Package bulk turns a campaign's file into requests, and the workers' answers into a file of links.
//
// An Input reads rows, and writes each again with its link. A Run publishes rows to
// portal.requests.<source>, hears link.issued and dead letters, and hands rows to the output in the
// order of the input. Rows between the two are the window; it is bounded in rows and bytes, so memory
// does not grow with the file. While the oldest row has no answer and the window is full, nothing
// is read.
//
// Invariants:
//
//  1. Each row of the input is in the output once, in the input's order, with its link or with an error.
//  2. The same file and campaign make the same requests, byte for byte, so that a second run after any
//     crash finds the links of the first and makes none twice.
//  3. It listens before it sends: no answer can come too early. Both listeners begin at a place in
//     their stream, not at "now", and go on from the last message that they saw, so that a restart of
//     NATS leaves no gap.
//  4. A publish without an ack is published again under the same Nats-Msg-Id, until it is stored. It may be
//     stored twice for all that; then both places in the stream are the row's.
//  5. A request that a worker has taken off the queue, and whose answer does not come, is published again
//     under another Nats-Msg-Id: its id is the same, so the worker answers with the same link once more.
//  6. Of rows with one id in the window, one at a time is under way, because an answer names the
//     request's id: the others take its answer where they are the same, and are sent behind it where not.
//  7. Memory: at most Options.Rows rows and, but for one row, Options.Bytes bytes of them.
package bulk
