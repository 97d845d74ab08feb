// Package stack starts the servers that Latchkey needs, on one machine and with
// nothing to configure: a Postgres made from binaries that are there already (or
// fetched once), and NATS with JetStream inside this process. `worker dev` and
// the tests stand on it; a production deployment brings its own servers.
//
// # Postgres
//
// StartPostgres owns one folder. Its binaries run as a child process in a
// process group of its own, so that Ctrl-C in a terminal reaches this process
// alone and the drain still has its database. The server listens on a Unix
// socket in a folder that only its user can enter, and nowhere else; that is why
// it can do without passwords.
//
// Postgres refuses to run as root. Started by root, its processes take the user
// that owns the data already, else "postgres", else "nobody". Where that user
// can't reach the folder (root's home is closed to others), the data lies in
// /var/tmp/latchkey-<hash of the folder's path>, and <folder>/data is a symbolic
// link to it. The link is the title deed: deleting the folder gives the data up,
// and the next start begins anew instead of reviving it.
//
// Invariants:
//
//  1. One live owner for each folder, by flock: a second one gets ErrInUse.
//  2. <folder>/data is a complete cluster or absent: it is made under another
//     name and renamed.
//  3. The server does not outlive its owner. On Linux the kernel tells it to
//     stop when the owner dies, however that came about; elsewhere the next
//     start stops what a killed owner left.
//  4. A signal goes only to a process that has been identified as the Postgres
//     of this very data folder: a pid file alone is never believed.
//  5. StartPostgres returns a server that answers queries, or an error that
//     carries the server's own last words.
//
// # NATS
//
// StartNATS runs nats-server in-process with its streams on disk. It installs no
// signal handlers and ends only by Stop.
package stack
