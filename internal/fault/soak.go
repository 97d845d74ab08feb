package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"

	"latchkey/internal/crowd"
	"latchkey/internal/jobs"
	"latchkey/internal/portal"
	"latchkey/internal/producer"
	"latchkey/internal/rig"
)

// soakResult is what hours of load did to what must not grow.
type soakResult struct {
	Measured time.Time   `json:"measured"`
	Commit   string      `json:"commit,omitempty"`
	Machine  rig.Machine `json:"machine"`
	Seconds  float64     `json:"seconds"`
	Capacity float64     `json:"capacity"` // units a second, as many as go
	Rate     float64     `json:"rate"`     // half of that
	Units    int64       `json:"units"`
	Failed   int64       `json:"failed"` // units that did not get to the portal
	Judged   float64     `json:"judged"` // minutes from which on the figures are judged
	Minutes  []float64   `json:"minutes"`
	Figures  []figure    `json:"figures"`
}

// figure is something that must not grow, over time.
type figure struct {
	Name   string    `json:"name"`
	Values []float64 `json:"values"`
	Growth float64   `json:"growth"` // percent from the begin to the end of what is judged, by the fitted line
	Grows  bool      `json:"grows"`
}

// soakTopology: two replicas that do everything, which is what most will run.
var soakTopology = []string{"intake,jobs,click", "intake,jobs,click"}

// soaking is a deployment under a load that goes on.
type soaking struct {
	*deployment
	crowd        *crowd.Crowd
	last         atomic.Int64
	done, failed atomic.Int64
}

// soak fails where a figure grows, or anybody does not get through.
func (s *suite) soak(ctx context.Context, d time.Duration, docs string) (err error) {
	dir := filepath.Join(s.dir, "soak")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	p := &plan{roles: soakTopology, rate: 1_000_000}
	deployed, err := newDeployment(ctx, s.tools, p, dir)
	defer func() { err = errors.Join(err, deployed.close(), deployed.remove()) }()
	if err != nil {
		return err
	}
	deployed.mail.forgets, deployed.hooks.forgets = true, true
	w := &soaking{deployment: deployed}
	w.crowd = newLoad(deployed).crowd()
	r := &soakResult{Measured: time.Now().UTC().Truncate(time.Second), Commit: rig.Commit(ctx), Seconds: d.Seconds()}
	if r.Machine, err = rig.ThisMachine(ctx, deployed.pool, deployed.nc.ConnectedServerVersion()); err != nil {
		return err
	}
	r.Capacity = w.capacity(ctx, min(30*time.Second, d/10))
	r.Rate = r.Capacity / 2
	fmt.Printf("as many as go: %.0f units a second; %s at half of that\n", r.Capacity, d)
	w.done.Store(0)
	w.failed.Store(0)
	if err := w.keepUp(ctx, d, r); err != nil {
		return err
	}
	r.Units, r.Failed = w.done.Load(), w.failed.Load()
	grown := r.judge()
	for _, f := range r.Figures {
		fmt.Printf("%s: from %.4g to %.4g, %+.1f %%\n", f.Name, f.Values[0], f.Values[len(f.Values)-1], f.Growth)
	}
	if docs != "" {
		if err := keep(docs, func(all *results) { all.Soak = r }); err != nil {
			return err
		}
	}
	if len(grown) > 0 || r.Failed > 0 {
		return fmt.Errorf("%d of %d units failed; what grows: %s", r.Failed, r.Units, strings.Join(grown, ", "))
	}
	return nil
}

// unit is one customer: a link at once, another one through the stream, by mail and by webhook, the page, the button.
func (w *soaking) unit(ctx context.Context) {
	own, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	n := w.last.Add(1)
	err := w.sendAndPress(own, n)
	if w.done.Add(1); err != nil && ctx.Err() == nil { // whose own time is over has failed; where the soak is ended, nobody has
		if w.failed.Add(1) < 10 {
			fmt.Fprintln(os.Stderr, "fault: a unit of the soak:", err)
		}
	}
}

// linksOfUnit are made by each unit.
const linksOfUnit = 2

func (w *soaking) sendAndPress(ctx context.Context, n int64) error {
	stream := &jobs.Request{ID: fmt.Sprintf("stream-%d", n), Source: "dunning", Session: &portal.SessionParams{Customer: "cus_Soak"}, Deliver: []jobs.Delivery{
		{Channel: jobs.ChannelEmail, To: "jo@example.com", Template: "payment_failed", Data: []byte(`{"name": "Jo", "amount": "€ 49.00"}`)},
		{Channel: jobs.ChannelWebhook, URL: w.hooks.url + "/link"}}}
	message, err := producer.NewMessage(stream)
	if err != nil {
		return err
	}
	if _, err := w.client.Send(ctx, message); err != nil {
		return err
	}
	if message, err = producer.NewMessage(&jobs.Request{ID: fmt.Sprintf("create-%d", n), Source: "support", Session: &portal.SessionParams{Customer: "cus_Soak"}}); err != nil {
		return err
	}
	link, err := w.client.Create(ctx, message)
	if err != nil {
		return err
	}
	_, path, _ := strings.Cut(strings.TrimPrefix(link.URL, "http://"), "/")
	p := &crowd.Person{Crowd: w.crowd, Path: "/" + path}
	p.Look(ctx)
	if err := p.Press(ctx, 1); err != nil {
		return err
	}
	if p.Through().IsZero() {
		return fmt.Errorf("a person ended with %s", p.Answers[len(p.Answers)-1])
	}
	return nil
}

// capacity is how many units a second there are where 16 go on one after the other. It ends when their events are out.
func (w *soaking) capacity(ctx context.Context, d time.Duration) float64 {
	began := time.Now()
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for time.Since(began) < d && ctx.Err() == nil {
				w.unit(ctx)
			}
		})
	}
	all.Wait()
	for open := 1; open > 0 && ctx.Err() == nil; pause(ctx, 100*time.Millisecond) {
		open, _ = number(ctx, w.pool, `SELECT count(*) FROM river_job WHERE kind IN ('email', 'webhook') AND state <> 'completed'`)
	}
	return float64(w.done.Load()) / time.Since(began).Seconds()
}

// keepUp begins units at the rate, whatever became of those before, and looks at the figures as it goes.
func (w *soaking) keepUp(ctx context.Context, d time.Duration, r *soakResult) error {
	began := time.Now()
	var all sync.WaitGroup
	all.Go(func() {
		for i := 0; time.Since(began) < d && ctx.Err() == nil; i++ {
			pause(ctx, time.Duration(float64(i)/r.Rate*float64(time.Second))-time.Since(began))
			all.Go(func() { w.unit(ctx) })
		}
	})
	every := min(10*time.Second, d/60)
	for time.Since(began) < d && ctx.Err() == nil {
		pause(ctx, every)
		values, err := w.look(ctx)
		if err != nil {
			return err
		}
		r.add(time.Since(began), values)
	}
	all.Wait()
	return ctx.Err()
}

// figureNames are what look finds, in its order. Tables of links grow with the links, so it is a link's share that must
// not; jobs come and go, so it is their table.
var figureNames = []string{"memory of the workers, MB", "live heap of the workers, MB", "goroutines", "open files", "table of jobs, MB", "bytes of a link, all tables"}

func (w *soaking) look(ctx context.Context) (values []float64, err error) {
	values = make([]float64, len(figureNames))
	for _, r := range w.replicas {
		r.mu.Lock()
		worker := r.worker
		r.mu.Unlock()
		if worker == nil {
			return nil, errors.New("a worker has ended; its log is in the folder")
		}
		values[0] += rig.Memory(worker.Cmd.Process.Pid, "VmRSS")
		values[1] += worker.Metric("go_memstats_next_gc_bytes") / 2e6 // GOGC=100: the next collection is at twice what the last one left
		values[2] += worker.Metric("go_goroutines")
		values[3] += worker.Metric("process_open_fds")
	}
	// A partitioned table has no size of its own: it is its partitions that are listed.
	err = w.pool.QueryRow(ctx, `SELECT pg_total_relation_size('river_job') / 1e6,
		(SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables WHERE relname NOT LIKE 'river%')::float8`).Scan(&values[4], &values[5])
	values[5] /= float64(linksOfUnit * w.last.Load())
	return values, err
}

func (r *soakResult) add(at time.Duration, values []float64) {
	if r.Figures == nil {
		for _, name := range figureNames {
			r.Figures = append(r.Figures, figure{Name: name})
		}
	}
	r.Minutes = append(r.Minutes, math.Round(at.Minutes()*100)/100)
	for i, v := range values {
		r.Figures[i].Values = append(r.Figures[i].Values, math.Round(v*10)/10)
	}
}

// warmUp is how long it takes until as many jobs go as come: they are kept for ten minutes. Of a shorter soak it is
// half.
const warmUp = 15 * time.Minute

// judge fits a line to each figure from the end of the warm-up on, and returns those that grow: by more than a tenth, and by
// more than they waver.
func (r *soakResult) judge() (grown []string) {
	r.Judged = min(warmUp.Minutes(), r.Seconds/120)
	from, _ := slices.BinarySearch(r.Minutes, r.Judged)
	for i := range r.Figures {
		f := &r.Figures[i]
		f.Growth, f.Grows = growth(r.Minutes[from:], f.Values[from:])
		if f.Grows {
			grown = append(grown, f.Name)
		}
	}
	return grown
}

func growth(x, y []float64) (percent float64, grows bool) {
	n := float64(len(x))
	if n < 3 {
		return 0, false
	}
	var mx, my, sxx, sxy, rest float64
	for i := range x {
		mx, my = mx+x[i]/n, my+y[i]/n
	}
	for i := range x {
		sxx += (x[i] - mx) * (x[i] - mx)
		sxy += (x[i] - mx) * (y[i] - my)
	}
	slope := sxy / sxx
	for i := range x {
		d := y[i] - my - slope*(x[i]-mx)
		rest += d * d
	}
	rise := slope * (x[len(x)-1] - x[0])
	return math.Round(1000*rise/my) / 10, rise > my/10 && rise > 2*math.Sqrt(rest/n)
}

// Flat tells whether nothing grew.
func (r *soakResult) Flat() bool {
	return !slices.ContainsFunc(r.Figures, func(f figure) bool { return f.Grows })
}

// Took is the soak's length.
func (r *soakResult) Took() string { return fmt.Sprintf("%.0f min", r.Seconds/60) }

// From and To are the figure's ends of what is drawn.
func (f figure) From() float64 { return f.Values[0] }
func (f figure) To() float64   { return f.Values[len(f.Values)-1] }

// plot draws all figures, each in percent of its mean from the end of the warm-up on.
func (r *soakResult) plot() ([]byte, error) {
	from, _ := slices.BinarySearch(r.Minutes, r.Judged)
	return rig.Draw(func(p *plot.Plot) error {
		for i, f := range r.Figures {
			var mean float64
			for _, v := range f.Values[from:] {
				mean += v / float64(len(f.Values)-from)
			}
			points := make(plotter.XYs, len(f.Values))
			for j, v := range f.Values {
				points[j] = plotter.XY{X: r.Minutes[j], Y: 100 * v / mean}
			}
			line, err := plotter.NewLine(points)
			if err != nil {
				return err
			}
			line.LineStyle = rig.LineStyle(i)
			p.Add(line)
			name, _, _ := strings.Cut(f.Name, ",")
			p.Legend.Add(name, line)
		}
		p.Y.Min, p.Y.Max = 0, 200
		p.X.Label.Text, p.Y.Label.Text = "minutes", "percent of the mean"
		p.Legend.Top, p.Legend.XOffs, p.Legend.YOffs, p.Legend.Padding = true, -8, -4, 2
		return nil
	})
}
