{#
  source() on Spark and Databricks: the decoded relation over Tributary's raw table, the winner of each entity alone.
  Elsewhere what dbt makes of it. README.md says what it needs.
#}
{% macro source(source_name, table_name) %}
  {%- set relation = builtins.source(source_name, table_name) -%}
  {%- if not execute or target.type not in ('spark', 'databricks') -%}
    {{ return(relation) }}
  {%- endif -%}
  {%- if tributary_payloads is not defined -%}
    {{ exceptions.raise_compiler_error("macros/tributary_payloads.sql is not there; run `tributary models spark`") }}
  {%- endif -%}
  {%- set payload = tributary_payloads().get(table_name) -%}
  {%- if payload is none -%}
    {{ exceptions.raise_compiler_error(table_name ~ ": no descriptors; run `tributary models spark` again") }}
  {%- endif -%}
  {{ return(tributary_winners(table_name, payload)) }}
{% endmacro %}


{#
  Of the events of one entity: the greatest version; then a delete; then the greatest xxh64 (seed 0) of type URL and
  payload; then the latest occurred_at; then the greatest operation number. A winner that deletes leaves no row, and an
  event that does not decode is none.

  xxhash64 of several values hashes each with what it made of the one before as seed, the first with 42. The number
  hashes to 0, which is the seed wanted. Its answers are compared as unsigned: with the sign bit turned over.
#}
{% macro tributary_winners(table_name, payload) -%}
(
  select tenant_id, entity_id, operation, version, occurred_at, {{ payload.payload }} as payload
  from (
    select
      tenant_id, entity_id, operation, version, occurred_at, decoded,
      row_number() over (
        partition by tenant_id, entity_id
        order by
          version desc,
          if(operation = 'DELETED', 1, 0) desc,
          xxhash64(-365884300664092260L, concat(cast(coalesce(payload_type_url, '') as binary), coalesce(unpacked, X'')))
            ^ (-9223372036854775807L - 1L) desc,
          occurred_at desc nulls last,
          case operation when 'UPDATED' then 2 when 'CREATED' then 1 else 3 end desc
      ) as place
    from (
      select
        *,
        {{ tributary_decoded(table_name, payload) }} as decoded
      from (
        select
          *,
          case
            when payload is null and payload_type_url is not null then {{ tributary_offloaded() }}
            when payload_compression is null then payload
            else {{ tributary_unpacked() }}
          end as unpacked
        from delta.`{{ var('tributary_raw').rstrip('/') }}/{{ table_name }}`
      )
    )
    where operation = 'DELETED' or decoded.{{ payload.decoded }} is not null
  )
  where place = 1 and operation <> 'DELETED'
)
{%- endmacro %}


{# A reference stands in the place of the payload: without its bytes there is neither a winner nor a row. #}
{% macro tributary_offloaded() -%}
  cast(raise_error('a payload lies in the object store beside the lake (offload), which dbt does not read') as binary)
{%- endmacro %}


{# Bytes of a packed payload, by a function (payload, payload_compression) that unpacks, where there is one. #}
{% macro tributary_unpacked() -%}
  {%- if var('tributary_unpack', none) is none -%}
    cast(raise_error(concat('a payload packed with ', payload_compression, '; the variable tributary_unpack names a function that unpacks')) as binary)
  {%- else -%}
    {{ var('tributary_unpack') }}(payload, payload_compression)
  {%- endif -%}
{%- endmacro %}


{# The payload's fields: by Spark's from_protobuf, or by functions that do what it does where SQL has none. #}
{% macro tributary_decoded(table_name, payload) -%}
  {%- if var('tributary_decode', none) is none -%}
    from_protobuf(
      unpacked, '{{ payload.message }}', X'{{ payload.descriptors }}',
      map({%- for name, value in payload.options.items() %}'{{ name }}', '{{ value }}'{{ ", " if not loop.last }}{% endfor -%})
    )
  {%- else -%}
    {{ var('tributary_decode') }}{{ table_name | replace('.', '_') }}(unpacked)
  {%- endif -%}
{%- endmacro %}
