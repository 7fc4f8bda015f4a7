package api

import (
	"math"
	"time"
)

// Response times are stored as counts in logarithmic buckets, like DDSketch (Masson, Rim, Lee, VLDB 2019, arXiv 1908.10693). SQL can add
// up the counts of a bucket over keys and hours, and every quantile computed from them is within latencyError of the exact one.
const (
	latencyError = 0.04
	latencyUnit  = 10 * time.Microsecond // everything faster is in bucket 0
)

var latencyGamma = math.Log((1 + latencyError) / (1 - latencyError))

// LatencyBucket returns the bucket of d: 0 for up to 10 microseconds, about 245 for an hour.
func LatencyBucket(d time.Duration) int {
	if d <= latencyUnit {
		return 0
	}
	return int(math.Ceil(math.Log(float64(d)/float64(latencyUnit)) / latencyGamma))
}

// BucketLatency returns the value that represents a bucket: within 4 % of every value counted in it.
func BucketLatency(bucket int) time.Duration {
	if bucket <= 0 {
		return latencyUnit
	}
	return time.Duration(float64(latencyUnit) * math.Exp(float64(bucket)*latencyGamma) * (1 - latencyError))
}

// LatencyQuantile returns a quantile (0..1) of counts by bucket, which must be in ascending order of bucket. It returns 0 without counts.
func LatencyQuantile(buckets []LatencyCount, q float64) time.Duration {
	var total int64
	for _, b := range buckets {
		total += b.Count
	}
	if total == 0 {
		return 0
	}
	rank := int64(math.Ceil(q * float64(total)))
	var seen int64
	for _, b := range buckets {
		seen += b.Count
		if seen >= rank {
			return BucketLatency(b.Bucket)
		}
	}
	return BucketLatency(buckets[len(buckets)-1].Bucket)
}

// LatencyCount is the number of response times in one bucket.
type LatencyCount struct {
	Bucket int
	Count  int64
}
