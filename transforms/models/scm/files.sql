{{ config(materialized='incremental', unique_key=['tenant_id', 'entity_id']) }}

select
    tenant_id,
    entity_id,
    payload.path as path,
    payload.directory as directory,
    payload.extension as extension,
    payload.last_commit_sha as last_commit_sha,
    payload.last_author as last_author,
    payload.created_at as created_at,
    payload.modified_at as modified_at,
    payload.change_count as change_count,
    payload.lines_added as lines_added,
    payload.lines_deleted as lines_deleted
from {{ source('raw', 'scm.v1.File') }}
