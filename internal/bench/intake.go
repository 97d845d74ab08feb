package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"latchkey/internal/jobs"
	"latchkey/internal/portal"
)

const (
	runLoops  = 2 // as many as intake runs
	bareBatch = 500
)

var filled int // numbers fills, each of which has request ids of its own

// bareArgs is the job that the bare loop writes for each message.
type bareArgs struct {
	ID string `json:"id"`
}

func (bareArgs) Kind() string { return "bare" }

// intake compares stream-to-committed-links with the bare loop: fetch 500 → rows ON CONFLICT and
// 500 River jobs in one transaction → ack, with as many loops; and with what one would write first, the same with a
// message a transaction. Nobody's jobs are worked.
func (b *bench) intake(ctx context.Context) error {
	n := 50_000
	if b.short {
		n = 2000
	}
	if err := b.prepareBare(ctx); err != nil {
		return err
	}
	if err := jobs.EnsureStreams(ctx, b.js, true); err != nil {
		return err
	}
	compared := []*intakeLoops{{loops: runLoops}, {loops: 1}, {loops: 4}}
	for range b.rounds() {
		for _, c := range compared {
			if err := b.compareIntake(ctx, c, n); err != nil {
				return err
			}
		}
	}
	// What comes next measures an idle system: the jobs that nobody worked go.
	if _, err := b.pool.Exec(ctx, `TRUNCATE river_job; DROP SCHEMA bare CASCADE`); err != nil {
		return err
	}
	for _, c := range compared {
		what, goal := fmt.Sprintf("intake, stream to committed links, %d, %d loops", n, c.loops), noGoal
		if c.loops == runLoops {
			goal = "≥ 1.2"
		}
		rate, toBare := fmt.Sprintf("%.0f/s", median(c.ours)), ratios(c.ours, c.bare)
		b.goal(goal == noGoal || median(toBare) >= 1.2, what, rate, fmt.Sprintf("bare loop, a job a message: %.0f/s", median(c.bare)), ofRounds("%.2f", toBare), goal)
		if c.loops == runLoops {
			toSingle := ratios(c.ours, c.single)
			b.goal(median(toSingle) >= 8, "  the same", rate, fmt.Sprintf("a transaction and a job a message: %.0f/s", median(c.single)), ofRounds("%.1f", toSingle), "≥ 8")
			b.series("Latchkey", c.rounds(), c.ours)
			b.series("bare loop", c.rounds(), c.bare)
			b.series("one by one", c.rounds(), c.single)
		}
	}
	return nil
}

// intakeLoops are the figures of a number of loops.
type intakeLoops struct {
	loops              int
	ours, bare, single []float64 // links a second, by round
}

// rounds numbers them, from 1.
func (c *intakeLoops) rounds() (numbers []float64) {
	for i := range c.ours {
		numbers = append(numbers, float64(i+1))
	}
	return numbers
}

func (b *bench) compareIntake(ctx context.Context, c *intakeLoops, n int) error {
	bare, err := b.bareRound(ctx, n, bareBatch, c.loops)
	if err != nil {
		return fmt.Errorf("bare loop: %w", err)
	}
	ours, err := b.intakeRound(ctx, b.pool, n, c.loops, inOrder)
	if err != nil {
		return fmt.Errorf("intake: %w", err)
	}
	c.ours, c.bare = append(c.ours, ours), append(c.bare, bare)
	if c.loops != runLoops {
		return nil
	}
	single, err := b.bareRound(ctx, n/20, 1, c.loops)
	if err != nil {
		return fmt.Errorf("a transaction a message: %w", err)
	}
	c.single = append(c.single, single)
	return nil
}

// bareSchema has the bare loop's tables: its own, and River's as River makes them, for ours has indexes less
// (migrations/00009).
const bareSchema = "bare"

func (b *bench) prepareBare(ctx context.Context) error {
	_, err := b.pool.Exec(ctx, `CREATE SCHEMA bare; CREATE TABLE bare.links (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		request_id text NOT NULL UNIQUE, body jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now())`)
	if err != nil {
		return err
	}
	migrator, err := rivermigrate.New(riverpgxv5.New(b.pool), &rivermigrate.Config{Schema: bareSchema})
	if err != nil {
		return err
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	_, err = b.js.CreateStream(ctx, jetstream.StreamConfig{Name: "BARE", Subjects: []string{"bare.>"}, Retention: jetstream.WorkQueuePolicy})
	return err
}

// namer makes the id and the customer of a request.
type namer func(fill, i int) (id, customer string)

// inOrder names requests so that each goes behind the one before it in every index.
func inOrder(fill, i int) (id, customer string) {
	return fmt.Sprintf("bench-%04d-%07d", fill, i), fmt.Sprintf("cus_Bench%04d%07d", fill, i)
}

// fill publishes n requests.
func (b *bench) fill(subject string, n int, name namer) error {
	filled++
	for i := range n {
		id, customer := name(filled, i)
		body, err := json.Marshal(&jobs.Request{ID: id, Source: "bench", Campaign: "bench",
			Session:  &portal.SessionParams{Customer: customer, FlowData: &portal.FlowData{Type: "payment_method_update"}},
			Metadata: map[string]string{"invoice": fmt.Sprintf("in_%d", i)}})
		if err != nil {
			return err
		}
		if _, err := b.js.PublishAsync(subject, body); err != nil {
			return err
		}
	}
	<-b.js.PublishAsyncComplete()
	return nil
}

func (b *bench) bareRound(ctx context.Context, n, batch, loops int) (float64, error) {
	if err := b.fill("bare.bench", n, inOrder); err != nil {
		return 0, err
	}
	consumer, err := b.js.CreateOrUpdateConsumer(ctx, "BARE", jetstream.ConsumerConfig{Durable: "bare", AckPolicy: jetstream.AckExplicitPolicy, MaxAckPending: 16_000})
	if err != nil {
		return 0, err
	}
	client, err := river.NewClient(riverpgxv5.New(b.pool), &river.Config{Schema: bareSchema})
	if err != nil {
		return 0, err
	}
	began := time.Now()
	var running sync.WaitGroup
	failed := make(chan error, loops)
	for range loops {
		running.Go(func() { failed <- b.bareLoop(ctx, client, consumer, batch) })
	}
	running.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

func (b *bench) bareLoop(ctx context.Context, client *river.Client[pgx.Tx], consumer jetstream.Consumer, batch int) error {
	for {
		fetched, err := consumer.FetchNoWait(batch)
		if err != nil {
			return err
		}
		var msgs []jetstream.Msg
		var ids, bodies []string
		var insert []river.InsertManyParams
		for msg := range fetched.Messages() {
			var req jobs.Request
			if err := json.Unmarshal(msg.Data(), &req); err != nil {
				return err
			}
			msgs, ids, bodies = append(msgs, msg), append(ids, req.ID), append(bodies, string(msg.Data()))
			insert = append(insert, river.InsertManyParams{Args: bareArgs{ID: req.ID}})
		}
		if len(msgs) == 0 {
			return nil
		}
		err = pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, `INSERT INTO bare.links (request_id, body) SELECT id, body::jsonb FROM unnest($1::text[], $2::text[]) AS t (id, body)
				ON CONFLICT (request_id) DO NOTHING`, ids, bodies); err != nil {
				return err
			}
			_, err := client.InsertManyFastTx(ctx, tx, insert)
			return err
		})
		if err != nil {
			return err
		}
		for _, msg := range msgs {
			if err := msg.Ack(); err != nil {
				return err
			}
		}
	}
}

// intakeRound is the rate at which intake serves n requests into a database.
func (b *bench) intakeRound(ctx context.Context, pool *pgxpool.Pool, n, loops int, name namer) (float64, error) {
	if err := b.fill(jobs.RequestsPrefix+"bench", n, name); err != nil {
		return 0, err
	}
	var key [32]byte
	_, _ = rand.Read(key[:])
	keys, err := portal.ParseKeys(portal.FormatKey(1, key))
	if err != nil {
		return 0, err
	}
	log := slog.New(slog.DiscardHandler)
	queue, err := jobs.NewRiver(jobs.RiverConfig{Pool: pool, JobPool: pool, JetStream: b.js, Keys: keys, Now: time.Now, Log: log})
	if err != nil {
		return 0, err
	}
	issuer := &jobs.Issuer{Pool: pool, Keys: keys, Publish: queue.Publish, Now: time.Now, Rules: jobs.Rules{TTL: time.Hour, TTLMax: time.Hour}}
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 1)
	began := time.Now()
	intake := jobs.NewIntake(b.js, issuer, log, nil)
	intake.Loops = loops
	go func() { ended <- intake.Run(runCtx) }()
	if err := b.untilServed(ctx, ended); err != nil {
		return 0, err
	}
	took := time.Since(began)
	stop()
	if err := <-ended; err != nil {
		return 0, err
	}
	return float64(n) / took.Seconds(), nil
}

// untilServed waits until every message is acknowledged.
func (b *bench) untilServed(ctx context.Context, ended chan error) error {
	for {
		select {
		case err := <-ended:
			return fmt.Errorf("intake ended early: %w", err)
		case <-time.After(5 * time.Millisecond):
		}
		stream, err := b.js.Stream(ctx, jobs.RequestsStream)
		if err != nil {
			return err
		}
		consumer, err := stream.Consumer(ctx, jobs.IntakeConsumer)
		if errors.Is(err, jetstream.ErrConsumerNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if info := consumer.CachedInfo(); info.NumPending == 0 && info.NumAckPending == 0 {
			return nil
		}
	}
}
