-- +goose Up

-- Nobody looks jobs up by their arguments or metadata, and the arguments of ours are ids, no two the same: these indexes
-- of River's keep the keys of jobs that are long gone, and grow without end. (River rebuilds them each night, for which
-- the worker would have to own them.)
SELECT lock_tables('river_job', 'ACCESS EXCLUSIVE');
DROP INDEX river_job_args_index, river_job_metadata_index;

-- +goose Down
CREATE INDEX river_job_args_index ON river_job USING gin (args);
CREATE INDEX river_job_metadata_index ON river_job USING gin (metadata);
